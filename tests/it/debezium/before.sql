CREATE EXTENSION IF NOT EXISTS hstore;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN price AS numeric(10, 2);
CREATE TABLE plain (id int PRIMARY KEY, name text, amount numeric(10, 2), at timestamptz);
CREATE TABLE full_row (id bigint PRIMARY KEY, note text, flag bool);
ALTER TABLE full_row REPLICA IDENTITY FULL;
CREATE TABLE two_keys (b text, a int, v text, PRIMARY KEY (a, b));
CREATE TABLE keyless (n int, t text);
CREATE TABLE large (id int PRIMARY KEY, n int, t text, v varchar, b bytea, j jsonb, js json, h hstore, x xml, num numeric,
                    ta text[], ia int[], la bigint[], na numeric[], ba bytea[]);
ALTER TABLE large ALTER t SET STORAGE EXTERNAL, ALTER v SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL,
                  ALTER js SET STORAGE EXTERNAL, ALTER h SET STORAGE EXTERNAL, ALTER x SET STORAGE EXTERNAL, ALTER ta SET STORAGE EXTERNAL,
                  ALTER ia SET STORAGE EXTERNAL, ALTER la SET STORAGE EXTERNAL, ALTER na SET STORAGE EXTERNAL, ALTER ba SET STORAGE EXTERNAL;
CREATE TABLE kinds (
  id int PRIMARY KEY, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(12, 3), p price, b bool,
  c char(5), vc varchar(20), t text, u uuid, by bytea, j json, jb jsonb, x xml, m money, o oid, mo mood,
  d date, ti time, ti3 time(3), tz timetz, ts timestamp, ts0 timestamp(0), ts3 timestamp(3), tsz timestamptz, tsz3 timestamptz(3),
  iv interval, hs hstore, ine inet, ci cidr, mac macaddr, r4 int4range, rts tsrange, rtz tstzrange, tsv tsvector,
  bit1 bit(1), bit8 bit(8), vb varbit(12), pt point, bx box,
  ai int[], al int8[], at text[], an numeric[], ab bool[], af float8[], ad date[], ats timestamp[], atz timestamptz[], au uuid[], aj jsonb[], aby bytea[], amo mood[], aa int[][]);
INSERT INTO plain VALUES (1, 'before', 1.00, '2026-11-21 04:55:30.123456+00');
