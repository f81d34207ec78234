//! The other indexes of tables that Walgate made on a replica.
//!
//! In: a source with indexes of every kind, an empty replica. Out: the same indexes there, where their columns went.
//! Always: the rows go on meanwhile, and what cannot be made stops nothing.

use crate::support::{Hub, Source, Walgate};

fn replicating(source: &Source, replica: &Source, hub: &Hub, rules: &str) -> Walgate {
    Walgate::new(source, hub)
        .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()))
        .section(rules)
}

fn rule(table: &str, more: &str) -> String {
    format!("[[table]]\nname = \"{table}\"\nmode = \"replicate\"\n{more}\n")
}

/// Definitions of a table's valid indexes, and of its constraints other than NOT NULL.
fn definitions(database: &Source, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = '{table}'::regclass AND indisvalid
         UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
         WHERE conrelid = '{table}'::regclass AND contype IN ('p', 'u', 'x') ORDER BY 1"
    );
    database.query(&sql).into_iter().map(|row| row[0].clone().expect("a definition")).collect()
}

#[test]
fn a_table_that_walgate_makes_gets_the_sources_indexes() {
    let (source, replica, hub) = (Source::new("idx"), Source::new("idx_r"), Hub::file());
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, email text, region text, total numeric, note text, pos int, span int4range,
           CONSTRAINT t_pos UNIQUE (pos) DEFERRABLE INITIALLY DEFERRED, CONSTRAINT t_span EXCLUDE USING gist (span WITH &&));
         CREATE UNIQUE INDEX t_email ON t (lower(email)) WHERE email IS NOT NULL;
         CREATE INDEX \"T region, USING total\" ON t USING btree (region DESC NULLS LAST) INCLUDE (total) WITH (fillfactor = 80);
         CREATE INDEX t_note ON t (note); CREATE INDEX t_partial ON t (total) WHERE note IS NOT NULL;
         CREATE INDEX t_hash ON t USING hash (region); CREATE UNIQUE INDEX t_again ON t (id);
         CREATE TABLE other (id int PRIMARY KEY, n int); CREATE INDEX taken ON other (n);
         INSERT INTO t SELECT i, 'E' || i, 'EU', i, 'x', i, int4range(i * 10, i * 10 + 5) FROM generate_series(1, 300) i",
    );
    replica.exec("CREATE TABLE taken (id int); CREATE TABLE other (id int PRIMARY KEY, n int)");
    source.exec("CREATE TABLE made (id int PRIMARY KEY, n int); CREATE INDEX made_n ON made (n); ALTER INDEX taken RENAME TO other_n; CREATE INDEX taken ON made (n)");
    let rules = rule("public.t", "to = \"sales.orders\"\nexclude = [\"note\"]")
        + &rule("public.other", "")
        + &rule("public.made", "");
    let walgate = replicating(&source, &replica, &hub, &rules);
    let log = walgate.run_until_caught_up();
    assert!(log.contains("index made"), "{log}");
    assert_eq!(
        definitions(&replica, "sales.orders"),
        [
            "CREATE INDEX \"T region, USING total\" ON sales.orders USING btree (region DESC NULLS LAST) INCLUDE (total) WITH (fillfactor='80')",
            "CREATE INDEX t_hash ON sales.orders USING hash (region)",
            "CREATE INDEX t_span ON sales.orders USING gist (span)",
            "CREATE UNIQUE INDEX orders_pkey ON sales.orders USING btree (id)",
            "CREATE UNIQUE INDEX t_email ON sales.orders USING btree (lower(email)) WHERE (email IS NOT NULL)",
            "CREATE UNIQUE INDEX t_pos ON sales.orders USING btree (pos)",
            "orders_pkey PRIMARY KEY (id)",
            "t_pos UNIQUE (pos) DEFERRABLE INITIALLY DEFERRED",
            "t_span EXCLUDE USING gist (span WITH &&)",
        ]
    );
    assert_eq!(definitions(&replica, "other").len(), 2, "a table that was there is left alone");
    assert_eq!(
        definitions(&replica, "made")[..2],
        [
            "CREATE INDEX made_n ON public.made USING btree (n)",
            "CREATE INDEX made_taken ON public.made USING btree (n)"
        ]
    );
    // Unique values move between rows, in one transaction and in several.
    source.exec("BEGIN; UPDATE t SET email = 'tmp' WHERE id = 1; UPDATE t SET email = 'E1' WHERE id = 2; UPDATE t SET email = 'E2' WHERE id = 1; COMMIT");
    source.exec("BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t (id, email) VALUES (1003, 'E3'); COMMIT");
    source.exec("UPDATE t SET pos = 301 - pos; UPDATE t SET span = int4range(lower(span) + 7, upper(span) + 7) WHERE id = 300");
    let log = walgate.run_until_caught_up();
    assert!(!log.contains("making an index"), "{log}");
    let rows = |database: &Source, table: &str| {
        database.query(&format!("SELECT id, email, region, total, pos, span FROM {table} ORDER BY id"))
    };
    assert_eq!(rows(&replica, "sales.orders"), rows(&source, "t"));
    // A new copy keeps them.
    assert!(walgate.command(&["resync", "public.t"]).status.success());
    walgate.run_until_caught_up();
    assert_eq!(definitions(&replica, "sales.orders").len(), 9);
    assert_eq!(rows(&replica, "sales.orders"), rows(&source, "t"));
}

#[test]
fn what_is_unfinished_is_made_again_and_what_fails_stops_nothing() {
    let (source, replica, hub) = (Source::new("idxfail"), Source::new("idxfail_r"), Hub::file());
    source.exec(
        "CREATE FUNCTION only_here(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
         CREATE TABLE t (id int PRIMARY KEY, n int); CREATE INDEX t_n ON t (n); CREATE UNIQUE INDEX t_u ON t (n, id);
         CREATE INDEX t_f ON t (only_here(n)); INSERT INTO t SELECT i, i FROM generate_series(1, 10) i",
    );
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    let log = walgate.run_until_caught_up();
    let by_hand = "CREATE INDEX \"t_f\" ON \"public\".\"t\" USING btree (public.only_here(n))";
    assert!(log.contains("index not made") && log.contains(by_hand), "{log}");
    assert_eq!(definitions(&replica, "t").len(), 4, "{:?}", definitions(&replica, "t"));
    // As a crash leaves one.
    replica.exec("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_n'::regclass");
    replica.exec("CREATE FUNCTION only_here(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'");
    source.exec("INSERT INTO t VALUES (11, 11)");
    walgate.run_until_caught_up();
    assert_eq!(definitions(&replica, "t").len(), 5);
    assert_eq!(replica.value("SELECT count(*) FROM t"), "11");
    assert_eq!(replica.value("SELECT has_indexes FROM walgate.created_table"), "t");
    // And drop takes what is stored about it.
    assert!(walgate.command(&["drop", "--yes"]).status.success());
    assert_eq!(replica.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walgate'"), "0");
}

#[test]
fn a_process_that_dies_while_an_index_is_made_leaves_it_to_the_next() {
    let (source, replica, hub) = (Source::new("idxkill"), Source::new("idxkill_r"), Hub::file());
    source.exec(
        "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE INDEX t_n ON t (n); INSERT INTO t VALUES (1, 1)",
    );
    let walgate = replicating(&source, &replica, &hub, &rule("public.t", ""));
    // Somebody's old snapshot keeps the index from becoming valid.
    let reader = replica.session();
    reader.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    let mut running = walgate.run();
    running.wait_for_log("making an index");
    source.exec("INSERT INTO t VALUES (2, 2)");
    crate::support::wait_until("the stream to go on", || replica.value("SELECT count(*) FROM t") == "2");
    assert_eq!(definitions(&replica, "t").len(), 2, "only the key's so far");
    running.kill9();
    reader.exec("COMMIT");
    walgate.run_until_caught_up();
    assert_eq!(definitions(&replica, "t").len(), 3);
}
