//! What libpq users write, what they get, and that no error, `Display` or `Debug` tells the password.

use super::*;
use proptest::prelude::*;

fn parse(url: &str) -> Result<ConnectUrl, UrlError> {
    ConnectUrl::parse(url, |name| (name == "USER").then(|| "ann".to_owned()))
}

fn parsed(url: &str) -> ConnectUrl {
    parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

#[test]
fn a_bare_url_has_libpqs_defaults() {
    for scheme in ["postgres://", "postgresql://"] {
        let url = parsed(scheme);
        assert_eq!(url.host, Host::Unix(PathBuf::from("/var/run/postgresql")));
        assert_eq!((url.port, url.user.as_str(), url.database.as_str()), (5432, "ann", "ann"));
        assert_eq!(url.ssl_mode, SslMode::Prefer);
        assert_eq!(url.connect_timeout, Some(Duration::from_secs(10)));
        assert_eq!(url.password, None);
    }
    let nobody = ConnectUrl::parse("postgres://", |_| None).expect("needs no environment");
    assert_eq!(nobody.user, "postgres");
    let logname = ConnectUrl::parse("postgres://", |name| match name {
        "USER" => Some(String::new()),
        "LOGNAME" => Some("bob".into()),
        _ => None,
    });
    assert_eq!(logname.expect("an empty USER is no user").user, "bob");
}

#[test]
fn every_part_and_parameter_is_read() {
    let url = parsed(
        "postgres://w%40lgate:p%2Fw%3a@db.example:6543/sh%20op?sslmode=verify-full&sslrootcert=/etc/ca.pem\
         &sslcert=c.pem&sslkey=k.pem&connect_timeout=3&application_name=x%20y&options=-c%20work_mem%3D1MB\
         &channel_binding=require",
    );
    assert_eq!(url.user, "w@lgate");
    assert_eq!(url.password.as_ref().map(Password::reveal), Some("p/w:"));
    assert_eq!(url.host, Host::Tcp("db.example".into()));
    assert_eq!((url.port, url.database.as_str()), (6543, "sh op"));
    assert_eq!(url.ssl_mode, SslMode::VerifyFull);
    assert_eq!(url.ssl_roots, SslRoots::File("/etc/ca.pem".into()));
    assert_eq!(url.ssl_client, Some(ClientCertificate { certificate: "c.pem".into(), key: "k.pem".into() }));
    assert_eq!(url.connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(url.application_name.as_deref(), Some("x y"));
    assert_eq!(url.options.as_deref(), Some("-c work_mem=1MB"));
    assert_eq!(url.channel_binding, ChannelBinding::Require);
}

#[test]
fn hosts_are_names_addresses_or_directories() {
    assert_eq!(parsed("postgres://[::1]:7/d").host, Host::Tcp("::1".into()));
    assert_eq!(parsed("postgres://[::1]:7/d").port, 7);
    assert_eq!(parsed("postgres://[2001:db8::1]").address(), "[2001:db8::1]:5432");
    let encoded = parsed("postgres://u@%2Ftmp%2Fpg:7/d");
    assert_eq!(encoded.host, Host::Unix("/tmp/pg".into()));
    assert_eq!(encoded.socket_path(), Some("/tmp/pg/.s.PGSQL.7".into()));
    assert_eq!(
        parsed("postgres:///d?host=/var/run/x&port=9").socket_path(),
        Some("/var/run/x/.s.PGSQL.9".into())
    );
    assert_eq!(parsed("postgres://u@/d?host=h").host, Host::Tcp("h".into()));
    assert_eq!(parsed("postgres://u@h?user=v&dbname=e").database, "e");
    assert_eq!(parsed("postgres://u@h:/d").port, 5432);
}

#[test]
fn a_password_comes_from_the_environment_only_if_the_url_has_none() {
    let environment = |name: &str| (name == "PGPASSWORD").then(|| "from env".to_owned());
    let password = |url| {
        let url = ConnectUrl::parse(url, environment).expect("a URL");
        url.password.map(|password| password.reveal().to_owned())
    };
    assert_eq!(password("postgres://u:own@h").as_deref(), Some("own"));
    assert_eq!(password("postgres://u@h?password=own").as_deref(), Some("own"));
    assert_eq!(password("postgres://u@h").as_deref(), Some("from env"));
    assert_eq!(password("postgres://u:@h").as_deref(), Some("from env"));
}

#[test]
fn faults_are_named() {
    let unknown = |name: &str| UrlError::UnknownParameter(name.into());
    for (url, error) in [
        ("mysql://h", UrlError::Scheme),
        ("host=h dbname=d", UrlError::Scheme),
        ("postgres://a,b/d", UrlError::SeveralHosts),
        ("postgres://a:1,b:2/d", UrlError::SeveralHosts),
        ("postgres:///d?host=a,b", UrlError::SeveralHosts),
        ("postgres://[::1/d", UrlError::Host),
        ("postgres://[::1]x/d", UrlError::Host),
        ("postgres://[name]/d", UrlError::Host),
        ("postgres://::1/d", UrlError::Host),
        ("postgres://h:0/d", UrlError::Port("0".into())),
        ("postgres://h:65536", UrlError::Port("65536".into())),
        ("postgres://h/d?sslmod=require", unknown("sslmod")),
        ("postgres://h/d?gssencmode=disable", unknown("gssencmode")),
        ("postgres://h/d?target_session_attrs=any", UrlError::TargetSessionAttrs),
        ("postgres://h/d?sslmode", UrlError::NoValue("sslmode".into())),
        ("postgres://h/d?sslcert=c", UrlError::HalfClientCertificate("sslkey")),
        ("postgres://h/d?sslkey=k", UrlError::HalfClientCertificate("sslcert")),
        ("postgres://h/%zz", UrlError::Encoding("database")),
        ("postgres://h/%4", UrlError::Encoding("database")),
        ("postgres://u%00@h", UrlError::Encoding("user")),
        ("postgres://%ff@h", UrlError::Encoding("user")),
        ("postgres://h?sslrootcert=system&sslmode=require", UrlError::WeakForSystemRoots(SslMode::Require)),
    ] {
        assert_eq!(parse(url), Err(error), "{url}");
    }
    for url in
        ["postgres://h?sslmode=on", "postgres://h?channel_binding=1", "postgres://h?connect_timeout=-1"]
    {
        assert!(matches!(parse(url), Err(UrlError::Value { .. })), "{url}");
    }
}

#[test]
fn sslrootcert_system_means_verify_full() {
    let url = parsed("postgres://h?sslrootcert=system");
    assert_eq!((url.ssl_mode, url.ssl_roots), (SslMode::VerifyFull, SslRoots::System));
}

#[test]
fn errors_become_definite_with_a_remedy() {
    let error = Error::from(parse("postgres://h?sslmod=x").expect_err("unknown"));
    assert!(error.is_definite());
    assert!(error.hint().is_some_and(|hint| hint.contains("sslmode")));
}

#[test]
fn neither_display_nor_debug_nor_an_error_shows_the_password() {
    let url = parsed("postgres://u:hunter2@h:1/d?sslmode=require");
    assert_eq!(url.to_string(), "postgres://u@h:1/d?sslmode=require");
    assert!(!format!("{url:?} {url:#?}").contains("hunter2"));
    for broken in [
        "postgres://u:hunter2@more@h:1/d",
        "postgres://u:x@hunter2@h",
        "postgres://u:x@hunter2:more@h",
        "postgres://u:hunter2/x@h",
        "postgres://u:x/hunter2@h",
        "postgres://u:x@hunter2/more@h",
        "postgres://u:x@h1:hunter2/more@h",
        "postgres://u:x/y?hunter2@h",
        "postgres://u:x/y?hunter2=3@h",
        "postgres://u:hunter2%@h",
        "postgres://u:hunter2%zz@h",
    ] {
        let error = parse(broken).expect_err(broken);
        let shown = format!("{error} {error:?} {}", error.hint());
        assert!(!shown.contains("hunter2"), "{broken}: {shown}");
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_fails_without_a_panic(text in "\\PC{0,60}") {
        let _ = parse(&format!("postgres://{text}"));
    }

    #[test]
    fn encoded_credentials_round_trip(user in "[^\\x00]{1,12}", password in "[^\\x00]{1,12}") {
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let url = parsed(&format!("postgres://{}:{}@h/d", encode(&user), encode(&password)));
        prop_assert_eq!(url.user, user);
        prop_assert_eq!(url.password.map(|p| p.reveal().to_owned()), Some(password));
    }
}
