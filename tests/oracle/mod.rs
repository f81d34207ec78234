//! A database of an oracle's own, on the server that the tests share.
//!
//! In: a purpose, the session's settings, what to do. Always: the database is dropped, whatever happens in it.

use std::future::Future;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_postgres::{Client, Config, NoTls};
use walgate::route::value::{TypeCatalog, TypeRow};

/// Runs `body` in a database of its own, which is dropped whatever happens in it.
pub async fn in_own_database<F>(purpose: &str, session: &str, body: impl FnOnce(Client) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let url = std::env::var("WALGATE_TEST_PG_URL").expect("WALGATE_TEST_PG_URL is not set: run make test");
    let mut config: Config = url.parse().expect("WALGATE_TEST_PG_URL is a URL of PostgreSQL");
    config.options(session);
    let admin = connect(&config).await;
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let database = format!("walgate_{purpose}_{}_{nanos}", std::process::id());
    let create = format!("CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'");
    admin.batch_execute(&create).await.expect("the database is created");
    let client = connect(config.clone().dbname(&database)).await;
    let outcome = tokio::spawn(body(client)).await;
    let drop = format!("DROP DATABASE {database} WITH (FORCE)");
    admin.batch_execute(&drop).await.expect("the database is dropped");
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// The server's types, as its catalog has them.
pub async fn types(client: &Client) -> Vec<TypeRow> {
    let letter = |value: i8| u8::try_from(value).expect("a letter of ASCII");
    let rows = client.query(TypeCatalog::QUERY, &[]).await.expect("the catalog is read");
    rows.iter()
        .map(|row| TypeRow {
            oid: row.get(0),
            name: row.get(1),
            namespace: row.get(2),
            typtype: letter(row.get(3)),
            category: letter(row.get(4)),
            element: row.get(5),
            base: row.get(6),
            delimiter: letter(row.get(7)),
            length: row.get(8),
            output: row.get(9),
        })
        .collect()
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}
