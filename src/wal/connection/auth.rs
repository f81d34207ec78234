//! Proving who we are: trust, cleartext, MD5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS.
//!
//! Comes in: a [`Link`] whose startup message has been sent. Goes out: the server's AuthenticationOk, or
//! a definite error with the remedy. It always holds that `channel_binding=require` ends in SCRAM-PLUS or
//! in an error, and that SCRAM has verified the server before it is believed. Manual: "SASL
//! Authentication", "Password Authentication".

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::link::{Answer, Link, malformed};
use crate::error::{Error, Result};
use crate::wal::url::{ChannelBinding, ConnectUrl};

/// Answers the server's request until it says AuthenticationOk.
pub(crate) async fn authenticate(link: &mut Link, url: &ConnectUrl) -> Result<()> {
    match receive(link).await? {
        Message::AuthenticationOk => return without_binding(url),
        Message::AuthenticationCleartextPassword => {
            without_binding(url)?;
            send_password(link, password(url)?.as_bytes()).await?;
        }
        Message::AuthenticationMd5Password(request) => {
            without_binding(url)?;
            let hash = md5_hash(url.user.as_bytes(), password(url)?.as_bytes(), request.salt());
            send_password(link, hash.as_bytes()).await?;
        }
        Message::AuthenticationSasl(request) => scram(link, url, &request).await?,
        Message::AuthenticationKerberosV5
        | Message::AuthenticationGss
        | Message::AuthenticationSspi
        | Message::AuthenticationScmCredential => {
            return Err(Error::definite(
                "the server asks for Kerberos, GSSAPI or SSPI, which Walgate does not have",
            )
            .with_hint("give the role a line with scram-sha-256 in pg_hba.conf"));
        }
        _ => return Err(malformed("no request for authentication")),
    }
    match receive(link).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(malformed("no end of the authentication")),
    }
}

/// What to say when the server wants a password and there is none.
pub(crate) fn no_password() -> Error {
    Error::definite("the server asks for a password, and there is none")
        .with_hint("write postgres://user:password@host/database, or set PGPASSWORD")
}

/// What to say when `channel_binding=require` cannot be had.
pub(crate) fn no_channel_binding() -> Error {
    Error::definite("channel_binding=require, but the server did not authenticate with channel binding")
        .with_hint(
            "use sslmode=require or stronger, and scram-sha-256 in pg_hba.conf; or channel_binding=prefer",
        )
}

/// What to say when SCRAM fails on our side: the server could not prove that it knows the password.
pub(crate) fn scram_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::definite("the server did not prove that it knows the password")
        .with_hint("is it the right server? if its verifier was changed meanwhile, try again")
        .with_source(error)
}

async fn scram(link: &mut Link, url: &ConnectUrl, request: &AuthenticationSaslBody) -> Result<()> {
    let password = password(url)?;
    let (mut offers_scram, mut offers_plus) = (false, false);
    let mut mechanisms = request.mechanisms();
    while let Some(mechanism) =
        mechanisms.next().map_err(|error| malformed("SASL mechanisms").with_source(error))?
    {
        offers_scram |= mechanism == sasl::SCRAM_SHA_256;
        offers_plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
    }
    let end_point = match url.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => link.end_point().map(<[u8]>::to_vec),
    };
    let (binding, mechanism) = match end_point {
        Some(hash) if offers_plus => {
            (sasl::ChannelBinding::tls_server_end_point(hash), sasl::SCRAM_SHA_256_PLUS)
        }
        // "We could, you did not offer it": a downgrade by somebody in between is then noticed by the server.
        Some(_) if offers_scram => (sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256),
        None if offers_scram => (sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256),
        _ => return Err(Error::definite("the server offers no SASL mechanism that Walgate has")),
    };
    if mechanism != sasl::SCRAM_SHA_256_PLUS {
        without_binding(url)?;
    }

    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, scram.message(), link.outgoing()).map_err(unsendable)?;
    link.flush().await?;
    match receive(link).await? {
        Message::AuthenticationSaslContinue(challenge) => {
            scram.update(challenge.data()).map_err(scram_failed)?
        }
        _ => return Err(malformed("no SASL challenge")),
    }
    frontend::sasl_response(scram.message(), link.outgoing()).map_err(unsendable)?;
    link.flush().await?;
    match receive(link).await? {
        Message::AuthenticationSaslFinal(proof) => scram.finish(proof.data()).map_err(scram_failed),
        _ => Err(malformed("no end of the SASL exchange")),
    }
}

fn password(url: &ConnectUrl) -> Result<&str> {
    url.password.as_ref().map(|password| password.reveal()).ok_or_else(no_password)
}

fn without_binding(url: &ConnectUrl) -> Result<()> {
    match url.channel_binding {
        ChannelBinding::Require => Err(no_channel_binding()),
        ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
    }
}

async fn send_password(link: &mut Link, password: &[u8]) -> Result<()> {
    frontend::password_message(password, link.outgoing()).map_err(unsendable)?;
    link.flush().await
}

fn unsendable(error: std::io::Error) -> Error {
    Error::definite("the password cannot be sent").with_hint("it may not hold a zero byte").with_source(error)
}

async fn receive(link: &mut Link) -> Result<Message> {
    match link.receive().await? {
        Answer::Message(message) => Ok(message),
        Answer::Failed(error) => Err(error.into_error()),
        Answer::CopyBoth => Err(malformed("CopyBothResponse before authentication")),
    }
}
