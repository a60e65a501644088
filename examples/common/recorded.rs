//! The flags of a run that is taken up again: those it began with.

use std::error::Error;

use clap::ArgMatches;
use clap::parser::ValueSource;
use cllm::checkpoint::Accept;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The flags to go on with: the `recorded` ones, with those of `lengths` as long as they are given now.
///
/// A flag that is `given` again, on the command line of `matches`, must be as recorded. Only lengths may grow, and the
/// number of workers may differ if a difference in rounding is accepted.
pub fn continued<F: Serialize + DeserializeOwned>(
    recorded: &F,
    given: &F,
    matches: &ArgMatches,
    lengths: &[&str],
    accept: Accept,
) -> Result<F, Box<dyn Error>> {
    let (mut flags, given) = (serde_json::to_value(recorded)?, serde_json::to_value(given)?);
    let (Value::Object(run), Value::Object(given)) = (&mut flags, given) else { return Err("no flags".into()) };
    let mut refused = Vec::new();
    for (name, given) in given {
        let recorded = run.get(&name).cloned().unwrap_or_default();
        if matches.value_source(&name) != Some(ValueSource::CommandLine) || given == recorded {
            continue;
        }
        let longer = lengths.contains(&name.as_str())
            && recorded.as_u64().zip(given.as_u64()).is_some_and(|(recorded, given)| given > recorded);
        if longer || name == "workers" && accept != Accept::Exact {
            run.insert(name, given);
        } else {
            refused.push(format!("--{} is {recorded} in the run, {given} was given", name.replace('_', "-")));
        }
    }
    if refused.is_empty() {
        Ok(serde_json::from_value(flags)?)
    } else {
        Err(format!("a run goes on with the flags it began with: {}", refused.join("; ")).into())
    }
}

/// Reads a word as the configuration files spell it.
pub fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Reads `exact`, `rounding` or `anything`.
pub fn accept(text: &str) -> Result<Accept, String> {
    match text {
        "exact" => Ok(Accept::Exact),
        "rounding" => Ok(Accept::Rounding),
        "anything" => Ok(Accept::Anything),
        _ => Err("exact, rounding or anything".into()),
    }
}

/// Says what differs from the checkpoint, or why that is refused and how to go on all the same.
pub fn taken_up<T>(resumed: cllm::Result<(T, Vec<cllm::checkpoint::Difference>)>) -> Result<T, Box<dyn Error>> {
    match resumed {
        Ok((trainer, differences)) => {
            differences.iter().for_each(|difference| eprintln!("differs: {difference}"));
            Ok(trainer)
        }
        Err(error) => Err(explained(error)),
    }
}

/// The error, with the flag that accepts differences where it is about them.
pub fn explained(error: cllm::Error) -> Box<dyn Error> {
    match error {
        cllm::Error::Differences { .. } => {
            format!("{error}; --accept rounding goes on where only the rounding may differ, --accept anything always")
                .into()
        }
        other => other.into(),
    }
}
