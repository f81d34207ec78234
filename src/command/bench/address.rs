//! Where a server is, in the forms that its clients want: a URL, libpq's `key=value` pairs, libpq's environment.
//!
//! In: a URL as Walgate takes it. Always: a password is in a configuration, a connection string or an environment of our
//! own making, never among a process's arguments, where anybody could read it.

use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, Result};
use crate::wal::url::{ConnectUrl, Host, SslMode, SslRoots};

/// A server, and the database there that one connects to first.
#[derive(Clone, Debug)]
pub struct Address(pub ConnectUrl);

impl Address {
    /// Of a URL.
    ///
    /// # Errors
    /// Definite: what is wrong with it.
    pub fn parse(url: &str) -> Result<Address> {
        Ok(Address(ConnectUrl::from_env(url).map_err(Error::from)?))
    }

    /// The same server, another database.
    pub fn database(&self, name: &str) -> Address {
        Address(ConnectUrl { database: name.to_owned(), ..self.0.clone() })
    }

    /// The same database, through something that listens on this port of 127.0.0.1. `None`: the certificate must be the
    /// host's, so that nothing may stand between.
    pub fn through(&self, port: u16) -> Option<Address> {
        let host = Host::Tcp("127.0.0.1".to_owned());
        let is_bound_to_host = self.0.ssl_mode == SslMode::VerifyFull;
        let ssl_mode = match self.0.host {
            Host::Unix(_) => SslMode::Disable,
            Host::Tcp(_) => self.0.ssl_mode,
        };
        (!is_bound_to_host).then(|| Address(ConnectUrl { host, port, ssl_mode, ..self.0.clone() }))
    }

    /// As Walgate's configuration takes it.
    pub fn url(&self) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let url = &self.0;
        let password =
            url.password.as_ref().map_or(String::new(), |password| format!(":{}", encode(password.reveal())));
        let host = match &url.host {
            Host::Tcp(_) => url.address(),
            Host::Unix(folder) => format!("{}:{}", encode(&folder.to_string_lossy()), url.port),
        };
        let parameters: Vec<String> =
            self.parameters().map(|(name, value)| format!("{name}={}", encode(&value))).collect();
        format!(
            "postgres://{}{password}@{host}/{}?{}",
            encode(&url.user),
            encode(&url.database),
            parameters.join("&")
        )
    }

    /// As CREATE SUBSCRIPTION takes it.
    pub fn conninfo(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let pairs = self.pairs().into_iter().chain(self.parameters());
        pairs.map(|(name, value)| format!("{name}={}", quoted(&value))).collect::<Vec<_>>().join(" ")
    }

    /// For libpq's programs.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let named = |name| match name {
            "host" => "PGHOST",
            "port" => "PGPORT",
            "user" => "PGUSER",
            "password" => "PGPASSWORD",
            "dbname" => "PGDATABASE",
            "sslmode" => "PGSSLMODE",
            "sslrootcert" => "PGSSLROOTCERT",
            "sslcert" => "PGSSLCERT",
            "sslkey" => "PGSSLKEY",
            _ => "PGOPTIONS",
        };
        self.pairs().into_iter().chain(self.parameters()).map(|(name, value)| (named(name), value)).collect()
    }

    fn pairs(&self) -> Vec<(&'static str, String)> {
        let url = &self.0;
        let host = match &url.host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.to_string_lossy().into_owned(),
        };
        let password = url.password.as_ref().map(|password| ("password", password.reveal().to_owned()));
        [("host", host), ("port", url.port.to_string()), ("user", url.user.clone())]
            .into_iter()
            .chain(password)
            .chain([("dbname", url.database.clone())])
            .collect()
    }

    fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let url = &self.0;
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let roots = match &url.ssl_roots {
            SslRoots::System => None,
            SslRoots::File(file) => Some(("sslrootcert", path(file))),
        };
        let client = url
            .ssl_client
            .iter()
            .flat_map(|client| [("sslcert", path(&client.certificate)), ("sslkey", path(&client.key))])
            .collect::<Vec<_>>();
        let options = url.options.clone().map(|options| ("options", options));
        [("sslmode", url.ssl_mode.to_string())].into_iter().chain(roots).chain(client).chain(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_same_in_every_form() {
        let address = Address::parse("postgres://me:p%27w%20x@db:5433/shop?sslmode=require").expect("a URL");
        let again = Address::parse(&address.database("other").url()).expect("its own URL");
        assert_eq!(again.0, address.database("other").0);
        assert_eq!(
            address.conninfo(),
            r"host='db' port='5433' user='me' password='p\'w x' dbname='shop' sslmode='require'"
        );
        assert!(address.environment().contains(&("PGPASSWORD", "p'w x".to_owned())));
        let through = address.through(7).expect("nothing is verified");
        assert_eq!(through.url(), "postgres://me:p%27w%20x@127.0.0.1:7/shop?sslmode=require");
    }

    #[test]
    fn a_socket_and_a_verified_host() {
        let socket = Address::parse("postgres://me@%2Ftmp%2Fa:5432/shop").expect("a URL");
        assert_eq!(Address::parse(&socket.url()).expect("its own URL").0.host, socket.0.host);
        assert!(socket.conninfo().starts_with("host='/tmp/a' port='5432'"));
        let verified = Address::parse("postgres://me@db/shop?sslmode=verify-full").expect("a URL");
        assert!(verified.through(7).is_none());
    }
}
