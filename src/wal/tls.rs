//! TLS towards PostgreSQL: a rustls configuration with libpq's meaning of `sslmode`.
//!
//! Comes in: the TLS part of a [`ConnectUrl`] and the PEM files it names. Goes out: a client
//! configuration, the name to ask for, and after the handshake the hash that SCRAM's channel binding
//! needs. It always holds that `verify-ca` and `verify-full` never accept a certificate whose chain was
//! not verified, and that every mode verifies the handshake's signature, so that a channel binding means
//! something even where the chain does not. Manual: "SSL Support", table "SSL Mode Descriptions";
//! RFC 5929 section 4.1 for `tls-server-end-point`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::error::{Error, Result};
use crate::wal::url::{ConnectUrl, SslMode, SslRoots};

/// The rustls configuration for `url`. Reads the files that the URL names.
///
/// # Errors
/// Definite: a file that cannot be read or holds no certificate or key, or no trusted authority at all.
pub fn client_config(url: &ConnectUrl) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(url, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::definite("TLS cannot be set up").with_source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &url.ssl_client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain = read_certificates("sslcert", &client.certificate)?;
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|error| {
                unusable("sslkey", &client.key, "an unencrypted PEM key").with_source(error)
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                Error::definite("sslcert and sslkey do not belong together").with_source(error)
            })?
        }
    };
    Ok(Arc::new(config))
}

/// The name that the handshake asks for (SNI) and that `verify-full` checks.
///
/// # Errors
/// Definite: `verify-full` and a host that is neither a DNS name nor an address.
pub fn server_name(url: &ConnectUrl, host: &str) -> Result<ServerName<'static>> {
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => Ok(name),
        // Only verify-full compares it; an address sends no SNI.
        Err(_) if url.ssl_mode != SslMode::VerifyFull => {
            Ok(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()))
        }
        Err(error) => Err(Error::definite(format!("\"{host}\" is not a name that a certificate can hold"))
            .with_hint("use the server's DNS name, or sslmode=verify-ca")
            .with_source(error)),
    }
}

/// The `tls-server-end-point` hash of the server's certificate: by the hash of its signature, SHA-256
/// where that is MD5 or SHA-1. `None` where the signature has no hash of its own (Ed25519) or names it in
/// its parameters (RSASSA-PSS): then SCRAM goes without channel binding.
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (number, family) = signature_algorithm(certificate)?.split_last()?;
    Some(match (family, number) {
        (RSA, 4 | 5 | 11) | (ECDSA, 1) | (ECDSA_SHA2, 2) => Sha256::digest(certificate).to_vec(),
        (RSA, 14) | (ECDSA_SHA2, 1) => Sha224::digest(certificate).to_vec(),
        (RSA, 12) | (ECDSA_SHA2, 3) => Sha384::digest(certificate).to_vec(),
        (RSA, 13) | (ECDSA_SHA2, 4) => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// What to do about a failed handshake, and whether it stays: `(definite, hint)`.
pub fn explain(error: &rustls::Error) -> (bool, Option<&'static str>) {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            true,
            Some(
                "connect by a name of the certificate's subjectAltName (the common name does not count), \
                 or use sslmode=verify-ca",
            ),
        ),
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            (true, Some("name the authority's certificate: sslrootcert=/path/to/ca.pem"))
        }
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (true, Some("renew the server's certificate, or mend this machine's clock"))
        }
        Tls::InvalidCertificate(_) => (true, Some("mend the server's certificate")),
        Tls::AlertReceived(alert) if is_lasting(*alert) => (
            true,
            Some(
                "the server refused the handshake: see its log, and sslcert, sslkey for a client certificate",
            ),
        ),
        Tls::PeerIncompatible(_) => (true, Some("enable TLS 1.2 or 1.3 on the server")),
        _ => (false, None),
    }
}

fn is_lasting(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::ProtocolVersion
            | Alert::InsufficientSecurity
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// 1.2.840.113549.1.1: RSA with PKCS #1 padding; the last number is the hash.
const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01];
/// 1.2.840.10045.4: ECDSA; `.1` is SHA-1.
const ECDSA: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04];
/// 1.2.840.10045.4.3: ECDSA with SHA-2; the last number is the hash.
const ECDSA_SHA2: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03];

/// The object identifier of the outer signature: Certificate = SEQUENCE { tbs, SEQUENCE { OID, .. }, .. }.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (content, _) = der_value(certificate, SEQUENCE)?;
    let (_to_be_signed, after) = der_value(content, SEQUENCE)?;
    let (algorithm, _) = der_value(after, SEQUENCE)?;
    der_value(algorithm, OBJECT_IDENTIFIER).map(|(identifier, _)| identifier)
}

/// Splits one DER value with this tag into its content and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (len, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7F))?;
        // Four bytes of length are 4 GiB: more is not a certificate.
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |len, &digit| len << 8 | usize::from(digit)), rest)
    };
    if found == tag { rest.split_at_checked(len) } else { None }
}

/// How far a server's chain is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Nothing,
    Chain,
    ChainAndName,
}

#[derive(Debug)]
struct Verifier {
    depth: Depth,
    roots: RootCertStore,
    /// The certificates of `sslrootcert` themselves. A self-signed server certificate that is its own
    /// authority is common with PostgreSQL and accepted by libpq, while webpki refuses it as a chain.
    /// Its dates are not looked at: whoever has put it into the file trusts that one certificate.
    pinned: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(url: &ConnectUrl, provider: &CryptoProvider) -> Result<Self> {
        let depth = match (url.ssl_mode, &url.ssl_roots) {
            (SslMode::VerifyFull, _) => Depth::ChainAndName,
            (SslMode::VerifyCa, _) | (_, SslRoots::File(_)) => Depth::Chain,
            (SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require, SslRoots::System) => {
                Depth::Nothing
            }
        };
        let mut roots = RootCertStore::empty();
        let mut pinned = Vec::new();
        match &url.ssl_roots {
            SslRoots::System if depth == Depth::Nothing => {}
            SslRoots::System => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(Error::definite("this system has no trusted certificate authorities").with_hint(
                        "install the package ca-certificates, or name the authority: sslrootcert=/path/to/ca.pem",
                    ));
                }
            }
            SslRoots::File(path) => {
                pinned = read_certificates("sslrootcert", path)?;
                let (added, _) = roots.add_parsable_certificates(pinned.iter().cloned());
                if added == 0 {
                    return Err(unusable("sslrootcert", path, "an X.509 certificate"));
                }
            }
        }
        Ok(Verifier { depth, roots, pinned, algorithms: provider.signature_verification_algorithms })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.depth == Depth::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.pinned.iter().any(|trusted| trusted == end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.depth == Depth::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn read_certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(parameter, path, "PEM certificates").with_source(error))?;
    if certificates.is_empty() {
        return Err(unusable(parameter, path, "PEM certificates"));
    }
    Ok(certificates)
}

fn unusable(parameter: &str, path: &Path, wanted: &str) -> Error {
    Error::definite(format!("{parameter} {} cannot be used", path.display()))
        .with_hint(format!("{parameter} must be a readable file with {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn self_signed(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["db".to_owned()]).expect("a name");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_end_point_hash_follows_the_certificates_signature() {
        let sha256 = self_signed(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(server_end_point(&sha256), Some(Sha256::digest(&sha256).to_vec()));
        let sha384 = self_signed(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(server_end_point(&sha384), Some(Sha384::digest(&sha384).to_vec()));
        assert_eq!(server_end_point(&self_signed(&rcgen::PKCS_ED25519)), None);
    }

    #[test]
    fn a_cut_certificate_has_no_hash_and_does_not_panic() {
        let whole = self_signed(&rcgen::PKCS_ECDSA_P256_SHA256);
        for len in 0..whole.len().min(200) {
            assert_eq!(server_end_point(&whole[..len]), None);
        }
        assert_eq!(server_end_point(&[0x30, 0x85, 1, 1, 1, 1, 1, 0x30]), None);
        assert_eq!(server_end_point(&[0x30, 0x80]), None);
    }

    #[test]
    fn files_that_cannot_be_used_are_definite_errors_that_name_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "no certificate here").expect("written");
        for path in [empty.display().to_string(), "/nonexistent/ca.pem".to_owned()] {
            let url =
                ConnectUrl::parse(&format!("postgres://h?sslmode=verify-ca&sslrootcert={path}"), |_| None);
            let error = client_config(&url.expect("a URL")).expect_err("no certificate");
            assert!(error.is_definite() && error.to_string().contains(&path), "{error}");
        }
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_matters_to_verify_full_only() {
        let name = |mode| {
            let url = ConnectUrl::parse(&format!("postgres://h?sslmode={mode}"), |_| None).expect("a URL");
            server_name(&url, "a b")
        };
        assert!(name("require").is_ok());
        assert!(name("verify-full").is_err_and(|error| error.is_definite()));
    }
}
