//! What the configuration says to `bandwidth`.

use cni::json::{DecodeError, Object};
use cni::{Error, Request};

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// How fast a container may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    /// What it receives.
    pub(super) ingress: Option<Limit>,
    /// What it sends.
    pub(super) egress: Option<Limit>,
}

/// A rate, and how much may exceed it for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bits per second.
    pub(super) rate: u64,
    /// Bits.
    pub(super) burst: u64,
}

impl Limit {
    /// The burst in bytes.
    pub(super) fn burst_bytes(self) -> u32 {
        u32::try_from(self.burst / 8).unwrap_or(u32::MAX)
    }
}

impl Limits {
    /// The limits of the configuration, or of the runtime where the configuration has none.
    pub(super) fn parse(request: &Request) -> Result<Limits, Error> {
        let unreadable =
            |error: DecodeError| Error::internal(format!("failed to parse network configuration: {error}"));
        let config = request.config.object();
        if KEYS.iter().any(|key| config.get(key).is_some()) {
            return Limits::of(&config).map_err(unreadable)?;
        }
        let runtime = config.object("runtimeConfig").map_err(unreadable)?;
        let runtime = runtime.map(|runtime| runtime.object("bandwidth")).transpose().map_err(unreadable)?;
        match runtime.flatten() {
            Some(limits) => Limits::of(&limits).map_err(unreadable)?,
            None => Ok(Limits::default()),
        }
    }

    /// Whether there is nothing to be limited.
    pub(super) fn are_none(&self) -> bool {
        *self == Limits::default()
    }

    fn of(object: &Object<'_>) -> Result<Result<Limits, Error>, DecodeError> {
        let number = |key| {
            let number = object.integer(key)?.unwrap_or(0);
            u64::try_from(number).map_err(|_| object.error(key, "a number that is not negative"))
        };
        let (ingress, egress) = ((number(KEYS[0])?, number(KEYS[1])?), (number(KEYS[2])?, number(KEYS[3])?));
        let both = || Ok(Limits { ingress: limit(ingress)?, egress: limit(egress)? });
        Ok(both())
    }
}

fn limit((rate, burst): (u64, u64)) -> Result<Option<Limit>, Error> {
    let refused = |msg: &str, remedy: String| Err(Error::internal(msg).details(remedy));
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => refused("if rate is set, burst must also be set", format!("the rate is {rate}")),
        (0, _) => refused("if burst is set, rate must also be set", format!("the burst is {burst}")),
        _ if burst / 8 >= u64::from(u32::MAX) => refused(
            "burst cannot be more than 4GB",
            format!("it is given in bits, and {burst} bits are {} bytes", burst / 8),
        ),
        (1..8, _) => refused("rate cannot be less than 8 bits per second", format!("it is {rate}")),
        _ => Ok(Some(Limit { rate, burst })),
    }
}

#[cfg(test)]
mod tests {
    use cni::{Config, Environment, Version};
    use serde_json::{Value, json};

    use super::*;

    fn parse(config: Value) -> Result<Limits, String> {
        let mut config = config;
        config["name"] = json!("bw");
        let config = Config::parse(config.to_string().into_bytes()).unwrap();
        let request = Request { environment: Environment::default(), config, version: Version::V1_0_0 };
        Limits::parse(&request).map_err(|error| error.msg)
    }

    #[test]
    fn what_the_configuration_says_counts_more_than_what_the_runtime_says() {
        let runtime = json!({"bandwidth": {"egressRate": 800, "egressBurst": 80}});
        let limits = parse(json!({"runtimeConfig": runtime})).unwrap();
        assert_eq!(limits, Limits { ingress: None, egress: Some(Limit { rate: 800, burst: 80 }) });
        let limits = parse(json!({"runtimeConfig": runtime, "ingressRate": 8, "ingressBurst": 8})).unwrap();
        assert_eq!(limits, Limits { ingress: Some(Limit { rate: 8, burst: 8 }), egress: None });
        // Zero is a word too.
        assert!(parse(json!({"runtimeConfig": runtime, "ingressRate": 0})).unwrap().are_none());
    }

    #[test]
    fn a_limit_has_a_rate_and_a_burst_that_the_kernel_can_keep() {
        for (config, msg) in [
            (json!({"ingressRate": 8}), "if rate is set, burst must also be set"),
            (json!({"egressBurst": 8}), "if burst is set, rate must also be set"),
            (json!({"egressRate": 8, "egressBurst": 34_359_738_360_u64}), "burst cannot be more than 4GB"),
            (json!({"egressRate": 7, "egressBurst": 8}), "rate cannot be less than 8 bits per second"),
        ] {
            assert_eq!(parse(config), Err(msg.to_owned()));
        }
        assert!(parse(json!({"ingressRate": -1})).unwrap_err().contains("\"ingressRate\" must be"));
        assert!(parse(json!({"egressRate": 8, "egressBurst": 34_359_738_359_u64})).is_ok());
    }
}
