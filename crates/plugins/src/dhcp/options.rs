//! The options that a configuration asks for and provides.

use cni::Error;
use cni::json::Object;

const PARAMETER_REQUEST_LIST: u8 = 55;
const ROUTERS: u8 = 3;
const SUBNET_MASK: u8 = 1;

/// Names as in `dhcp-options(5)`.
const NAMES: [(&str, u8); 6] = [
    ("dhcp-client-identifier", 61),
    ("subnet-mask", SUBNET_MASK),
    ("routers", ROUTERS),
    ("host-name", 12),
    ("user-class", 77),
    ("vendor-class-identifier", 60),
];

/// Number and value of every option that goes into the messages.
pub(super) fn of(ipam: &Object<'_>, cni_args: &str) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let mut options = provided(ipam, cni_args)?;
    let mut list = Vec::new();
    let mut defaults = true;
    for entry in ipam.objects("request")?.unwrap_or_default() {
        defaults &= !entry.boolean("skipDefault")?.unwrap_or(false);
        match entry.string("option")? {
            None | Some("") => {}
            Some(name) => list.push(number(name)?),
        }
    }
    if defaults {
        list.extend([ROUTERS, SUBNET_MASK]);
    }
    let mut seen = [false; 256];
    list.retain(|number| !std::mem::replace(&mut seen[usize::from(*number)], true));
    if !list.is_empty() {
        options.push((PARAMETER_REQUEST_LIST, list));
    }
    Ok(options)
}

fn provided(ipam: &Object<'_>, cni_args: &str) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let mut options = Vec::new();
    for entry in ipam.objects("provide")?.unwrap_or_default() {
        let name = entry.string("option")?.unwrap_or_default();
        let number = number(name)?;
        let fixed = entry.string("value")?.filter(|value| !value.is_empty());
        let key = entry.string("fromArg")?.filter(|key| !key.is_empty());
        let pairs = || cni_args.split(';').filter_map(|pair| pair.split_once('='));
        let told = key.and_then(|key| pairs().rfind(|(name, _)| *name == key)).map(|(_, value)| value);
        // What the runtime says counts more.
        for value in [fixed, told].into_iter().flatten() {
            if value.len() > 255 {
                return Err(Error::internal(format!("value too long for option {name:?}: {value:?}")));
            }
            options.retain(|(other, _)| *other != number);
            options.push((number, value.as_bytes().to_vec()));
        }
    }
    Ok(options)
}

fn number(name: &str) -> Result<u8, Error> {
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    // 0 and 255 are no options, but padding and the end of them; 53 is what kind of message it is.
    named.or_else(|| name.parse().ok()).filter(|number| !matches!(number, 0 | 53 | 255)).ok_or_else(|| {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Error::internal(format!("Can not parse option {name:?}"))
            .details(format!("want a number from 1 to 254 other than 53, or one of {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(ipam: Value, args: &str) -> Result<Vec<(u8, Vec<u8>)>, String> {
        of(&Object::of(&ipam, "ipam").unwrap(), args).map_err(|error| error.msg)
    }

    #[test]
    fn routers_and_mask_are_asked_for_unless_told_otherwise() {
        assert_eq!(options(json!({}), "").unwrap(), [(55, vec![3, 1])]);
        let more = json!({"request": [{"option": "121"}, {"option": "host-name"}, {"option": "routers"}]});
        assert_eq!(options(more, "").unwrap(), [(55, vec![121, 12, 3, 1])]);
        let own = json!({"request": [{"skipDefault": true}, {"option": "subnet-mask"}]});
        assert_eq!(options(own, "").unwrap(), [(55, vec![1])]);
        assert_eq!(options(json!({"request": [{"skipDefault": true}]}), "").unwrap(), []);
    }

    #[test]
    fn the_runtimes_value_counts_more_than_the_configurations() {
        let ipam = json!({"provide": [
            {"option": "host-name", "value": "a", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "v"}]});
        let of = |args| options(ipam.clone(), args).unwrap()[..2].to_vec();
        assert_eq!(of(""), [(12, b"a".to_vec()), (60, b"v".to_vec())]);
        assert_eq!(of("IgnoreUnknown=1;K8S_POD_NAME=web"), [(12, b"web".to_vec()), (60, b"v".to_vec())]);
    }

    #[test]
    fn what_is_no_option_is_named() {
        for name in ["domain", "256", "0", "53", ""] {
            let error = options(json!({"provide": [{"option": name, "value": "x"}]}), "").unwrap_err();
            assert_eq!(error, format!("Can not parse option {name:?}"));
        }
        let long = json!({"provide": [{"option": "12", "value": "x".repeat(256)}]});
        assert!(options(long, "").unwrap_err().starts_with("value too long for option \"12\""));
    }
}
