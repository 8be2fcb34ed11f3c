//! `ipvsadm-save` and `ipvsadm-restore`, which upstream has as shell scripts around `ipvsadm`.

use std::ffi::OsString;
use std::io::{BufRead, Read};

use super::{Environment, run};

/// Saves as `ipvsadm -S`. Words that are no options are overlooked, as upstream.
///
/// Returns the exit status: that of `ipvsadm -S`, or 1 for an option that is none of ours.
pub fn run_save<'a>(args: &[OsString], program: &'a str, environment: Environment<'a>) -> u8 {
    let mut words = vec![OsString::from("-S")];
    for arg in args {
        match arg.to_string_lossy().as_ref() {
            "-n" | "--full" => words.push(arg.clone()),
            option if option.starts_with('-') => {
                let text = format!(
                    "{program} writes the virtual-server table to standard output.\n\
                     \x20 -n      addresses and ports in numbers\n\
                     \x20 --full  thresholds too, which only this program's restore knows\n"
                );
                // There is nowhere left to say that this failed.
                drop(environment.stderr.write_all(text.as_bytes()));
                return 1;
            }
            _ => {}
        }
    }
    words.dedup();
    run(&words, program, environment)
}

/// Replaces the table by the lines of standard input, of which those that begin with `#` are left
/// out. Everything is read before the old table goes.
///
/// Returns the exit status of `ipvsadm -R`.
pub fn run_restore<'a>(args: &[OsString], program: &'a str, environment: Environment<'a>) -> u8 {
    let Environment { open, backend, names, stdin, stdout, stderr } = environment;
    let mut words = vec![OsString::from("-R")];
    words.extend(args.iter().filter(|arg| *arg == "--atomic").take(1).cloned());
    let mut lines = match without_comments(stdin) {
        Ok(lines) => lines,
        Err(error) => {
            drop(writeln!(stderr, "{program}: reading standard input: {error}"));
            return 1;
        }
    };
    lines.insert_str(0, "-C\n");
    let environment =
        Environment { open, backend, names, stdin: &mut lines.as_bytes(), stdout, stderr };
    run(&words, program, environment)
}

/// The longest table that is read: a million lines of the longest kind.
const BYTES_MAX: u64 = 1 << 30;

fn without_comments(stdin: &mut dyn BufRead) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    stdin.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A comment stays as an empty line, so that messages name the right one but for the -C before.
    let lines = text.lines().map(|line| if line.starts_with('#') { "" } else { line });
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}
