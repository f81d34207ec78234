//! `${NAME}` in string values: the value of an environment variable (DESIGN.md, section 3).
//!
//! It is put in after the file has been parsed, so that no character of it can end a string, and it is not
//! looked at again. Inside a URL it is percent-encoded, so that no character of a password can end it; a
//! variable that *is* the whole value (`url = "${DATABASE_URL}"`) is a URL already and taken as it stands.
//! `$${` stands for `${`; any other `$` for itself.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How a variable's value is put into a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Text,
    Url,
}

/// Why a reference stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnvFault {
    #[error("the environment variable {0} is not set")]
    Missing(String),
    #[error("a ${{ is not closed")]
    Open,
    /// What stands there is not shown: it may be a piece of a password.
    #[error("a ${{...}} does not name an environment variable")]
    Name,
}

impl EnvFault {
    pub(super) fn remedy(&self) -> String {
        match self {
            EnvFault::Missing(name) => format!("set it: export {name}=..."),
            EnvFault::Open | EnvFault::Name => {
                "write ${NAME}, of letters, digits and _; or $${ for the characters themselves".to_owned()
            }
        }
    }
}

/// Puts the environment into `text`; reports every reference that cannot be replaced.
pub(super) fn expand(
    text: &str,
    place: Place,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, Vec<EnvFault>> {
    let mut expanded = String::with_capacity(text.len());
    let mut faults = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            faults.push(EnvFault::Open);
            rest = "";
            break;
        };
        let is_whole = name.len() + "${}".len() == text.len();
        match lookup(name, env) {
            Ok(value) if place == Place::Url && !is_whole => {
                expanded.extend(utf8_percent_encode(&value, RESERVED));
            }
            Ok(value) => expanded.push_str(&value),
            Err(fault) => faults.push(fault),
        }
        rest = after;
    }
    expanded.push_str(rest);
    if faults.is_empty() { Ok(expanded) } else { Err(faults) }
}

/// Writes `text` so that [`expand`] gives it back as it stands.
pub(super) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

fn lookup(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, EnvFault> {
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(EnvFault::Name);
    }
    env(name).ok_or_else(|| EnvFault::Missing(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "PASSWORD" => Some("p@ss/w:rd?#%\"é ${USER}".to_owned()),
            "USER" => Some("walgate-1.x_~".to_owned()),
            "EMPTY" => Some(String::new()),
            "URL" => Some("postgres://a:b@c/d".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_variable_is_taken_as_it_stands_in_text_and_encoded_in_a_url() {
        assert_eq!(
            expand("x${PASSWORD}y", Place::Text, &env).unwrap(),
            "xp@ss/w:rd?#%\"é ${USER}y",
            "and its own ${{}} is not looked at"
        );
        assert_eq!(
            expand("postgres://${USER}:${PASSWORD}@db/shop", Place::Url, &env).unwrap(),
            "postgres://walgate-1.x_~:p%40ss%2Fw%3Ard%3F%23%25%22%C3%A9%20%24%7BUSER%7D@db/shop"
        );
        assert_eq!(expand("a${EMPTY}b", Place::Url, &env).unwrap(), "ab");
    }

    #[test]
    fn a_variable_that_is_the_whole_url_is_one_already() {
        assert_eq!(expand("${URL}", Place::Url, &env).unwrap(), "postgres://a:b@c/d");
        assert_eq!(
            expand("${USER}${URL}", Place::Url, &env).unwrap(),
            "walgate-1.x_~postgres%3A%2F%2Fa%3Ab%40c%2Fd"
        );
    }

    #[test]
    fn dollars_stand_for_themselves() {
        for (text, expanded) in
            [("$${NAME}", "${NAME}"), ("$NAME $ $$", "$NAME $ $$"), ("$$${USER}", "$${USER}"), ("}", "}")]
        {
            assert_eq!(expand(text, Place::Text, &env).unwrap(), expanded);
        }
    }

    #[test]
    fn every_missing_variable_is_named() {
        let faults = expand("${A}${USER}${B}${}${1X}${open", Place::Text, &env).unwrap_err();
        assert_eq!(
            faults,
            [
                EnvFault::Missing("A".into()),
                EnvFault::Missing("B".into()),
                EnvFault::Name,
                EnvFault::Name,
                EnvFault::Open,
            ]
        );
    }

    proptest! {
        #[test]
        fn an_escaped_text_comes_back(text in "[${}a]{0,12}") {
            prop_assert_eq!(expand(&escape(&text), Place::Text, &|_| None), Ok(text));
        }

        #[test]
        fn an_encoded_value_decodes_to_itself(value in "\\PC{0,20}") {
            let url = expand("x${V}", Place::Url, &|_| Some(value.clone())).unwrap();
            prop_assert!(url.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
            let decoded = percent_encoding::percent_decode_str(&url[1..]).decode_utf8().unwrap();
            prop_assert_eq!(decoded.as_ref(), value.as_str());
        }
    }
}
