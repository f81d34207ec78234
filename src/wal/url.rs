//! Connection URLs: from libpq's text to everything that a connection needs.
//!
//! Comes in: `postgres://user:password@host:port/database?parameter=value` and a look-up of environment
//! variables. Goes out: a [`ConnectUrl`] in which every default has been filled in. It always holds that
//! neither `Display`, `Debug` nor an error shows the password, and that no parameter is ignored: what is
//! not understood is an error that names it. Manual: "Connection URIs", "Parameter Key Words", "SSL
//! Support".

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// Where libpq looks for the server when the URL names no host (as Debian and most packages build it).
pub const SOCKET_DIRECTORY_DEFAULT: &str = "/var/run/postgresql";
/// How long a connection may take to be ready, host look-up and authentication included.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const PORT_DEFAULT: u16 = 5432;
const KNOWN_PARAMETERS: &str = "host, port, user, password, dbname, sslmode, sslrootcert, sslcert, sslkey, \
     connect_timeout, application_name, options, channel_binding";

/// A validated connection URL. Made by [`ConnectUrl::parse`]; prints without the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectUrl {
    /// Where the server listens.
    pub host: Host,
    /// TCP port, or the number in the socket's file name.
    pub port: u16,
    /// The role to connect as.
    pub user: String,
    /// The password of the URL, else of `PGPASSWORD`.
    pub password: Option<Password>,
    /// The database to connect to.
    pub database: String,
    /// Whether and how TLS is used; never over a Unix socket.
    pub ssl_mode: SslMode,
    /// Whom a server's certificate must come from.
    pub ssl_roots: SslRoots,
    /// The client's own certificate.
    pub ssl_client: Option<ClientCertificate>,
    /// Whether SCRAM is tied to the TLS session.
    pub channel_binding: ChannelBinding,
    /// How long connecting may take; `None` (written `connect_timeout=0`) is without end.
    pub connect_timeout: Option<Duration>,
    /// The URL's `application_name`, used where the caller has none of its own.
    pub application_name: Option<String>,
    /// The URL's `options`: command-line switches for the session (`-c name=value`).
    pub options: Option<String>,
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address (IPv6 without brackets).
    Tcp(String),
    /// The directory of the Unix socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// A password: compared and sent, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password itself, for authentication only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server insists.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// Always TLS; the certificate is verified only if `sslrootcert` is given.
    Require,
    /// Always TLS, with a certificate from a trusted authority.
    VerifyCa,
    /// The same, and the certificate must be for this host.
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return None,
        })
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

/// The authorities that a server's certificate is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SslRoots {
    /// Those of the operating system; they count for `verify-ca` and `verify-full`.
    System,
    /// Those of a PEM file (`sslrootcert`), which makes `require` verify as well, as in libpq.
    File(PathBuf),
}

/// A client certificate with its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// `sslcert`: the certificate, followed by intermediate ones.
    pub certificate: PathBuf,
    /// `sslkey`: its unencrypted key.
    pub key: PathBuf,
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// When TLS and the server allow it.
    Prefer,
    /// Or no connection.
    Require,
}

/// Why a text is not a connection URL. Holds no part of the URL that may contain the password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    /// Another scheme, or a list of `key=value` pairs.
    #[error("a connection URL begins with postgres:// or postgresql://")]
    Scheme,
    /// A bracket without its partner, or text after it.
    #[error("the host of the URL is malformed")]
    Host,
    /// `host1,host2`.
    #[error("the URL names several hosts")]
    SeveralHosts,
    /// Not 1 to 65535.
    #[error("port \"{0}\" is not a number from 1 to 65535")]
    Port(String),
    /// `%` without two hexadecimal digits, a zero byte, or not UTF-8.
    #[error("the {0} of the URL is not valid percent-encoding of UTF-8 text")]
    Encoding(&'static str),
    /// A parameter without `=`.
    #[error("parameter \"{0}\" of the URL has no value")]
    NoValue(String),
    /// A parameter that Walgate does not know.
    #[error("unknown parameter \"{0}\" in the URL")]
    UnknownParameter(String),
    /// A parameter that is known and refused.
    #[error("parameter \"target_session_attrs\" is not supported")]
    TargetSessionAttrs,
    /// A value outside the parameter's set.
    #[error("parameter \"{name}\" of the URL cannot be \"{value}\"")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What was written.
        value: String,
        /// What may be written.
        allowed: &'static str,
    },
    /// `sslcert` without `sslkey` or the reverse.
    #[error("parameters \"sslcert\" and \"sslkey\" go together, and \"{0}\" is missing")]
    HalfClientCertificate(&'static str),
    /// `sslrootcert=system` with a mode that does not check the host's name.
    #[error("sslmode={0} is too weak for sslrootcert=system")]
    WeakForSystemRoots(SslMode),
}

impl UrlError {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match self {
            UrlError::Scheme | UrlError::Host => {
                "write postgres://user@host:5432/database, an IPv6 address in brackets; percent-encode \
                 @ : / ? # [ ] in user and password"
                    .into()
            }
            UrlError::SeveralHosts => "name the one server that the slot lives on".into(),
            UrlError::Port(_) => "write the port as host:5432, or leave it out".into(),
            UrlError::Encoding(_) => {
                "write % itself as %25, and every other byte as % and two hexadecimal digits".into()
            }
            UrlError::NoValue(name) => format!("write {name}=value, or remove it"),
            UrlError::UnknownParameter(_) => format!("known are: {KNOWN_PARAMETERS}"),
            UrlError::TargetSessionAttrs => "remove it and name the one server that the slot lives on".into(),
            UrlError::Value { name, allowed, .. } => format!("{name} takes {allowed}"),
            UrlError::HalfClientCertificate(name) => format!("add {name}=/path/to/file.pem"),
            UrlError::WeakForSystemRoots(_) => {
                "write sslmode=verify-full: anybody can have a certificate of a public authority".into()
            }
        }
    }
}

impl From<UrlError> for Error {
    fn from(error: UrlError) -> Self {
        let hint = error.hint();
        Error::definite(error.to_string()).with_hint(hint)
    }
}

impl ConnectUrl {
    /// Parses `url`. `environment` looks up `PGPASSWORD`, `USER` and `LOGNAME`; nothing else is read.
    pub fn parse(url: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, UrlError> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or(UrlError::Scheme)?;

        let mut draft = Draft::default();
        draft.read(rest)?;
        draft.finish(|name| environment(name).filter(|value| !value.is_empty()))
    }

    /// [`ConnectUrl::parse`] with the process's environment.
    pub fn from_env(url: &str) -> Result<Self, UrlError> {
        Self::parse(url, |name| std::env::var(name).ok())
    }

    /// The path of the Unix socket, where the host is a directory.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Host::Tcp(_) => None,
        }
    }

    /// Host and port as a person reads them: `db:5432`, `[::1]:5432` or the socket's path.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(directory) => directory.join(format!(".s.PGSQL.{}", self.port)).display().to_string(),
        }
    }
}

impl fmt::Display for ConnectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let (user, database) = (encode(&self.user), encode(&self.database));
        match &self.host {
            Host::Tcp(_) => {
                write!(f, "postgres://{user}@{}/{database}?sslmode={}", self.address(), self.ssl_mode)
            }
            Host::Unix(directory) => {
                write!(f, "postgres://{user}@:{}/{database}?host={}", self.port, directory.display())
            }
        }
    }
}

/// What the URL said, before defaults.
#[derive(Default)]
struct Draft<'a> {
    host: Option<Cow<'a, str>>,
    port: Option<u16>,
    user: Option<Cow<'a, str>>,
    password: Option<Cow<'a, str>>,
    database: Option<Cow<'a, str>>,
    ssl_mode: Option<SslMode>,
    ssl_root: Option<Cow<'a, str>>,
    ssl_certificate: Option<Cow<'a, str>>,
    ssl_key: Option<Cow<'a, str>>,
    channel_binding: Option<ChannelBinding>,
    connect_timeout: Option<u64>,
    application_name: Option<Cow<'a, str>>,
    options: Option<Cow<'a, str>>,
}

impl<'a> Draft<'a> {
    fn read(&mut self, rest: &'a str) -> Result<(), UrlError> {
        // As in libpq, the first @ before any / ends the credentials, so that a password may hold a ?.
        let before_path = rest.split('/').next().unwrap_or_default();
        let rest = match before_path.split_once('@') {
            Some((credentials, _)) => {
                let (user, password) = match credentials.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (credentials, None),
                };
                self.user = filled(decode(user, "user")?);
                self.password = password.map(|text| decode(text, "password")).transpose()?.and_then(filled);
                rest.get(credentials.len() + 1..).unwrap_or_default()
            }
            None => rest,
        };
        // A further @ means that a password with a raw @ or / was cut: quote nothing of it.
        self.read_after_credentials(rest)
            .map_err(|error| if rest.contains('@') { UrlError::Host } else { error })
    }

    fn read_after_credentials(&mut self, rest: &'a str) -> Result<(), UrlError> {
        let (location, query) = match rest.split_once('?') {
            Some((location, query)) => (location, Some(query)),
            None => (rest, None),
        };
        if location.contains('@') {
            return Err(UrlError::Host);
        }
        let (authority, database) = match location.split_once('/') {
            Some((authority, database)) => (authority, Some(database)),
            None => (location, None),
        };
        self.read_authority(authority)?;
        if let Some(database) = database {
            self.database = filled(decode(database, "database")?);
        }
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let name = pair.split('=').next().unwrap_or_default();
            let value = pair.get(name.len() + 1..).ok_or_else(|| UrlError::NoValue(name.to_owned()))?;
            self.read_parameter(name, value)?;
        }
        Ok(())
    }

    fn read_authority(&mut self, authority: &'a str) -> Result<(), UrlError> {
        if authority.contains(',') {
            return Err(UrlError::SeveralHosts);
        }
        let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
            let (address, after) = bracketed.split_once(']').ok_or(UrlError::Host)?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(UrlError::Host);
            }
            (
                address,
                if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(UrlError::Host)?) },
            )
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        if host.contains(['[', ']']) || port.is_some_and(|port| port.contains(':')) {
            return Err(UrlError::Host);
        }
        self.host = filled(decode(host, "host")?);
        match port {
            None | Some("") => {}
            Some(port) => self.port = Some(parse_port(port)?),
        }
        Ok(())
    }

    fn read_parameter(&mut self, name: &str, text: &'a str) -> Result<(), UrlError> {
        match name {
            "host" => self.host = filled(decode(text, "parameter host")?),
            "port" => self.port = Some(parse_port(&decode(text, "parameter port")?)?),
            "user" => self.user = filled(decode(text, "parameter user")?),
            "password" => self.password = filled(decode(text, "parameter password")?),
            "dbname" => self.database = filled(decode(text, "parameter dbname")?),
            "sslmode" => {
                let value = decode(text, "parameter sslmode")?;
                let allowed = "disable, allow, prefer, require, verify-ca or verify-full";
                self.ssl_mode = Some(SslMode::parse(&value).ok_or_else(|| wrong("sslmode", value, allowed))?);
            }
            "sslrootcert" => self.ssl_root = filled(decode(text, "parameter sslrootcert")?),
            "sslcert" => self.ssl_certificate = filled(decode(text, "parameter sslcert")?),
            "sslkey" => self.ssl_key = filled(decode(text, "parameter sslkey")?),
            "channel_binding" => {
                let value = decode(text, "parameter channel_binding")?;
                self.channel_binding = Some(match &*value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(wrong("channel_binding", value, "disable, prefer or require")),
                });
            }
            "connect_timeout" => {
                let value = decode(text, "parameter connect_timeout")?;
                let allowed = "a whole number of seconds, 0 for no limit";
                let seconds = value.parse::<u32>().map_err(|_| wrong("connect_timeout", value, allowed))?;
                self.connect_timeout = Some(seconds.into());
            }
            "application_name" => self.application_name = filled(decode(text, "parameter application_name")?),
            "options" => self.options = filled(decode(text, "parameter options")?),
            "target_session_attrs" => return Err(UrlError::TargetSessionAttrs),
            _ => return Err(UrlError::UnknownParameter(name.to_owned())),
        }
        Ok(())
    }

    fn finish(self, environment: impl Fn(&str) -> Option<String>) -> Result<ConnectUrl, UrlError> {
        let host = match self.host {
            None => Host::Unix(PathBuf::from(SOCKET_DIRECTORY_DEFAULT)),
            Some(hosts) if hosts.contains(',') => return Err(UrlError::SeveralHosts),
            Some(directory) if directory.starts_with('/') => Host::Unix(PathBuf::from(&*directory)),
            Some(name) => Host::Tcp(name.into_owned()),
        };
        let user = self
            .user
            .map(Cow::into_owned)
            .or_else(|| environment("USER"))
            .or_else(|| environment("LOGNAME"))
            .unwrap_or_else(|| "postgres".to_owned());
        let ssl_client = match (self.ssl_certificate, self.ssl_key) {
            (None, None) => None,
            (Some(_), None) => return Err(UrlError::HalfClientCertificate("sslkey")),
            (None, Some(_)) => return Err(UrlError::HalfClientCertificate("sslcert")),
            (Some(certificate), Some(key)) => Some(ClientCertificate {
                certificate: PathBuf::from(&*certificate),
                key: PathBuf::from(&*key),
            }),
        };
        // As in libpq: `system` makes verify-full the default, and anything weaker is refused.
        let system_asked_for = self.ssl_root.as_deref() == Some("system");
        let ssl_mode = match self.ssl_mode {
            None if system_asked_for => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some(mode) if system_asked_for && mode != SslMode::VerifyFull => {
                return Err(UrlError::WeakForSystemRoots(mode));
            }
            Some(mode) => mode,
        };
        Ok(ConnectUrl {
            host,
            port: self.port.unwrap_or(PORT_DEFAULT),
            password: self.password.map(Cow::into_owned).or_else(|| environment("PGPASSWORD")).map(Password),
            database: self.database.map_or_else(|| user.clone(), Cow::into_owned),
            user,
            ssl_mode,
            ssl_roots: match self.ssl_root {
                Some(path) if path != "system" => SslRoots::File(Path::new(&*path).to_owned()),
                _ => SslRoots::System,
            },
            ssl_client,
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            connect_timeout: match self.connect_timeout {
                None => Some(CONNECT_TIMEOUT_DEFAULT),
                Some(0) => None,
                Some(seconds) => Some(Duration::from_secs(seconds)),
            },
            application_name: self.application_name.map(Cow::into_owned),
            options: self.options.map(Cow::into_owned),
        })
    }
}

/// An empty text counts as not given, as in libpq.
fn filled(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(text)
}

fn wrong(name: &'static str, value: Cow<'_, str>, allowed: &'static str) -> UrlError {
    UrlError::Value { name, value: value.into_owned(), allowed }
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(UrlError::Port(text.to_owned())),
        Ok(port) => Ok(port),
    }
}

/// Undoes percent-encoding; `part` names the text in the error.
fn decode<'a>(text: &'a str, part: &'static str) -> Result<Cow<'a, str>, UrlError> {
    let well_formed = text.split('%').skip(1).all(|after| {
        let mut digits = after.bytes();
        (0..2).all(|_| digits.next().is_some_and(|digit| digit.is_ascii_hexdigit()))
    });
    let decoded =
        percent_encoding::percent_decode_str(text).decode_utf8().map_err(|_| UrlError::Encoding(part))?;
    if !well_formed || decoded.contains('\0') {
        return Err(UrlError::Encoding(part));
    }
    Ok(decoded)
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
