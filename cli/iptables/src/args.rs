//! Reads the options, as text, from the command line and the environment.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::options::{IGNORED, OPTIONS, OptionSpec};

/// The options of the command line, as text.
#[derive(Debug, Clone, Default)]
pub struct IptablesArgs {
    /// Values by the long name of their option.
    values: BTreeMap<&'static str, String>,
    /// Options that are accepted and have no effect.
    pub(crate) ignored: Vec<&'static str>,
}

/// The value of an option, with its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionValue {
    pub(crate) value: String,
    /// `--name`, or the name of a variable.
    pub(crate) name: String,
}

impl IptablesArgs {
    /// Returns the value of an option: from the command line, else from the environment, where an empty variable counts as unset.
    pub(crate) fn value(&self, option: &OptionSpec, env: impl Fn(&str) -> Option<String>) -> Option<OptionValue> {
        if let Some(value) = self.values.get(option.long) {
            return Some(OptionValue { value: value.clone(), name: format!("--{}", option.long) });
        }
        option.env.iter().find_map(|name| {
            let value = env(name).filter(|value| !value.is_empty())?;
            Some(OptionValue { value, name: (*name).to_owned() })
        })
    }
}

impl Args for IptablesArgs {
    fn augment_args(command: Command) -> Command {
        let mut command = command;
        for option in OPTIONS.iter().filter(|option| !option.long.is_empty()) {
            let variables = match option.env {
                [] => String::new(),
                names => format!(" [env: {}]", names.join(", ")),
            };
            let mut arg = argument(option.long, option.short).help(format!("{}{variables}", option.help));
            arg = match option.value {
                Some(name) => arg.value_name(name).allow_hyphen_values(true),
                None => arg.value_name("BOOL").num_args(0..=1).require_equals(true).default_missing_value("true"),
            };
            command = command.arg(arg);
        }
        for (long, short) in IGNORED {
            command = command.arg(argument(long, *short).hide(true).num_args(0..=1).default_missing_value(""));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Defines an argument of which the last one wins where it is repeated, as in Go's tools.
fn argument(long: &'static str, short: Option<char>) -> Arg {
    let arg = Arg::new(long).long(long).action(ArgAction::Set).overrides_with(long);
    match short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

impl FromArgMatches for IptablesArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for option in OPTIONS.iter().filter(|option| !option.long.is_empty()) {
            if let Some(value) = matches.get_one::<String>(option.long) {
                self.values.insert(option.long, value.clone());
            }
        }
        self.ignored = IGNORED.iter().map(|(long, _)| *long).filter(|long| matches.contains_id(long)).collect();
        Ok(())
    }
}
