//! [`Arguments`]: the `CNI_ARGS` variable.

use crate::error::Error;

/// Extra arguments of a runtime, `KEY=VALUE;KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arguments(Vec<(String, String)>);

impl Arguments {
    /// Reads the variable. `known` are the keys the plugin understands; any other one is an error
    /// unless the arguments say `IgnoreUnknown=1`, as the runtimes of Kubernetes do.
    pub fn parse(text: &str, known: &[&str]) -> Result<Arguments, Error> {
        let mut pairs = Vec::new();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        if text.is_empty() {
            return Ok(Arguments::default());
        }
        for pair in text.split(';') {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(Error::internal(format!("ARGS: invalid pair {pair:?}")));
            };
            if key == "IgnoreUnknown" {
                ignore_unknown = truth(value).ok_or_else(|| {
                    Error::internal(format!(
                        "ARGS: error parsing value of pair {pair:?}: must be true or false"
                    ))
                })?;
            } else if known.contains(&key) {
                pairs.push((key.to_owned(), value.to_owned()));
            } else {
                unknown.push(format!("{pair:?}"));
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(Error::internal(format!("ARGS: unknown args [{}]", unknown.join(" "))));
        }
        Ok(Arguments(pairs))
    }

    /// The value of a key, the last one if it was given twice.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The spellings of true and false that the reference library takes.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        other if other.eq_ignore_ascii_case("true") => Some(true),
        other if other.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_read_and_unknown_ones_refused_unless_told_otherwise() {
        let arguments = Arguments::parse("IP=10.0.0.5;IgnoreUnknown=true;K8S_POD_NAME=a", &["IP"]).unwrap();
        assert_eq!(arguments.get("IP"), Some("10.0.0.5"));
        let error = Arguments::parse("IP=10.0.0.5;K8S_POD_NAME=a", &["IP"]).unwrap_err();
        assert_eq!(error.msg, r#"ARGS: unknown args ["K8S_POD_NAME=a"]"#);
        assert_eq!(Arguments::parse("IP", &["IP"]).unwrap_err().msg, r#"ARGS: invalid pair "IP""#);
        assert_eq!(Arguments::parse("", &[]), Ok(Arguments::default()));
    }
}
