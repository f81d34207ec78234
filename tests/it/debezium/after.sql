INSERT INTO plain VALUES (42, 'EU', 19.90, '2026-11-21 04:55:30+00'), (43, NULL, NULL, NULL);
UPDATE plain SET amount = 20.00 WHERE id = 42;
UPDATE plain SET id = 44 WHERE id = 42;
DELETE FROM plain WHERE id = 43;
INSERT INTO full_row VALUES (9007199254740993, 'a "quoted" line
and é', true);
UPDATE full_row SET note = 'b';
UPDATE full_row SET id = 2;
DELETE FROM full_row;
INSERT INTO two_keys VALUES ('x', 1, 'v');
UPDATE two_keys SET b = 'y';
DELETE FROM two_keys;
INSERT INTO keyless VALUES (1, 'one');
INSERT INTO large SELECT 1, 0, s, s, decode(s, 'hex'), jsonb_build_object('k', s), json_build_object('k', s), hstore('k', s), xmlelement(name e, s), ('1.' || repeat('7', 9000))::numeric,
  ARRAY[s, s], (SELECT array_agg(i) FROM generate_series(1, 2000) i), (SELECT array_agg(i::int8) FROM generate_series(1, 2000) i),
  (SELECT array_agg(i::numeric) FROM generate_series(1, 2000) i), ARRAY[decode(s, 'hex')]
  FROM (SELECT string_agg(md5(i::text), '') AS s FROM generate_series(1, 200) i) q;
UPDATE large SET n = 1;
UPDATE large SET id = 2;
INSERT INTO kinds VALUES (1, -7, 2147483647, 9007199254740993, 1.5, 1e22, 12345678901234567890.1234567890, 12.300, 5, true,
  'ab', 'varchar', E'tab\tquote"', '0f0e0d0c-0b0a-0908-0706-050403020100', '\x00ff10', '{"a" : 1}', '{"b": [1, 2.50]}', '<a/>', 1234.5, 4000000000, 'happy',
  '2026-11-21', '04:05:06.789012', '04:05:06.789', '04:05:06.5+02', '2026-11-21 04:55:30.123456', '2026-11-21 04:55:30', '2026-11-21 04:55:30.12', '2026-11-21 04:55:30.5+01', '2026-11-21 04:55:30.120+00',
  '1 year 2 mons 3 days 04:05:06.78', 'a=>1, b=>NULL', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '[1,5)', '[2026-01-01,2026-02-01)', '[2026-01-01 00:00+00,2026-02-01 00:00+00)', 'fat cat',
  B'1', B'10000001', B'101', '(1,2)', '(1,2),(0,0)',
  '{1,NULL,3}', '{9007199254740993}', '{a,NULL,"b,c"}', '{1.50,2}', '{t,f}', '{1.5}', '{2026-11-21}', '{"2026-11-21 04:55:30.5"}', '{"2026-11-21 04:55:30.5+01"}', '{0f0e0d0c-0b0a-0908-0706-050403020100}', '{"{\"a\": 1}"}', '{"\\x00ff"}', '{sad,happy}', '{{1,2},{3,4}}');
INSERT INTO kinds (id, f4, f8, n, d, ts, tsz, iv, ti, tz, hs, at) VALUES (2, 'NaN', '-Infinity', 'NaN', '0044-03-15 BC', 'infinity', '-infinity', '0', '00:00', '23:30-08', '', '{}');
INSERT INTO kinds (id, n, d, ts, tsz, iv, ti, tz, ts3) VALUES (3, 0.00000001, '12026-01-01', '12026-01-01 00:00:00', '2026-11-21 04:55:00+00', '-1 day -00:00:01.5', '04:05:00', '04:05:00+00', '2026-11-21 04:00:00');
INSERT INTO kinds (id, n, m, ti, tz, iv, pt, bit8, vb, f8, d, tsz, by, ai, mo) VALUES (4, 'Infinity', -5.25, '12:00', '01:00:00.25+05:30', '-1 year 5 hours', '(1.5,-20000000000)', B'00000000', B'000010000001', 0.1, '0001-01-01', '2026-11-21 04:55:30.000001+00', '', '{}', 'sad');
UPDATE kinds SET i2 = NULL, t = 'changed' WHERE id = 1;
DELETE FROM kinds WHERE id = 1;
TRUNCATE plain;
TRUNCATE plain, full_row;
SELECT pg_logical_emit_message(true, 'walgate.outbox', '{"aggregate_type":"Order","aggregate_id":"7","type":"OrderPlaced","payload":{"total":"1.50"}}');
INSERT INTO plain VALUES (999, 'end', NULL, NULL);
