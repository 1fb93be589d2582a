//! Reads files with policies.

use weir_injector::assertions::{CaptureAssertion, MAX_ASSERTIONS};

use crate::failure::{Failure, join};
use crate::files::InputFile;
use crate::manifest::stream;

/// Reads all files.
///
/// # Errors
/// Every file that cannot be read, and every invalid field.
pub(super) fn load(files: &[String]) -> Result<Vec<CaptureAssertion>, Failure> {
    let mut all = Ok(Vec::new());
    for file in files {
        all = join(all, load_file(file)).map(|(mut all, more)| {
            all.extend(more);
            all
        });
    }
    let all = all?;
    match all.len() {
        0 => Err(Failure::findings(vec![format!("{}: no CaptureAssertion found", files.join(", "))])),
        count if count > MAX_ASSERTIONS => {
            let text = format!("{count} CaptureAssertion objects; at most {MAX_ASSERTIONS} are allowed");
            Err(Failure::findings(vec![text]))
        }
        _ => Ok(all),
    }
}

fn load_file(file: &str) -> Result<Vec<CaptureAssertion>, Failure> {
    let input = InputFile::from(file);
    let text = input.read()?;
    parse(&text).map_err(|findings| Failure::findings_in(&input.name(), &findings))
}

/// Parses a stream of CaptureAssertions.
fn parse(text: &str) -> Result<Vec<CaptureAssertion>, Vec<String>> {
    let documents = stream::split(text).map_err(|strays| strays.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let (mut assertions, mut findings) = (Vec::new(), Vec::new());
    for document in documents {
        let read = document.parse().map_err(|error| vec![error.to_string()]);
        match read.and_then(|value| CaptureAssertion::read_all(&value)) {
            Ok(more) => assertions.extend(more),
            Err(faults) => findings.extend(faults.iter().map(|fault| format!("{document}: {fault}"))),
        }
    }
    if findings.is_empty() { Ok(assertions) } else { Err(findings) }
}
