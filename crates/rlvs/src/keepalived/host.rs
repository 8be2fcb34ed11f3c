//! This host, as far as a configuration asks for it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;
use nix::unistd::{AccessFlags, User, access};
use rlvs_conf::{Options, Surroundings, Unread};

/// Patterns that braces may stand for.
const PATTERNS_MAX: usize = 256;

/// This host.
#[derive(Debug)]
pub struct Host {
    /// Whether interfaces, programs and users are looked for; files always are.
    pub asked: bool,
}

/// Returns how a configuration is read here.
pub fn options(id: Option<String>, includes_required: bool) -> Options {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = host.trim().split('.').next().unwrap_or_default().to_owned();
    let seed = u64::from(std::process::id());
    Options { id: id.unwrap_or(label), instance: String::new(), seed, includes_required }
}

impl Surroundings for Host {
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Unread::Missing,
            _ => Unread::Failed(error.to_string()),
        };
        let data = fs::metadata(path).map_err(failed)?;
        if !data.is_file() || data.permissions().mode() & 0o111 != 0 {
            return Err(Unread::NotConfiguration);
        }
        let file = fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > bytes_max {
            return Err(Unread::TooLong);
        }
        Ok(bytes)
    }

    fn matching(&mut self, pattern: &str) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for pattern in expanded(pattern) {
            let Ok(found) = glob::glob(&pattern) else { continue };
            let new = found.filter_map(Result::ok).filter(|path| !paths.contains(path));
            paths.extend(new.collect::<Vec<_>>());
        }
        paths
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn has_interface(&self, name: &str) -> Option<bool> {
        self.asked.then(|| if_nametoindex(name).is_ok())
    }

    fn has_program(&self, path: &str) -> Option<bool> {
        self.asked.then(|| {
            if path.contains('/') {
                return runnable(Path::new(path));
            }
            let folders = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&folders).any(|folder| runnable(&folder.join(path)))
        })
    }

    fn routing_number(&self, table: &str, name: &str) -> Option<u32> {
        // The administrator's come first.
        let folders = ["/etc/iproute2", "/usr/share/iproute2"];
        let patterns = folders
            .iter()
            .flat_map(|folder| [format!("{folder}/{table}"), format!("{folder}/{table}.d/*.conf")]);
        let files = patterns.filter_map(|pattern| glob::glob(&pattern).ok()).flatten().flatten();
        files
            .filter_map(|path| fs::read_to_string(path).ok())
            .find_map(|text| number_in(&text, name))
    }

    fn has_user(&self, name: &str) -> Option<bool> {
        self.asked.then(|| User::from_name(name).is_ok_and(|user| user.is_some()))
    }
}

/// Returns the number of a name in a table of iproute2: a number and a name on each line.
fn number_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let number = words.next()?;
        let is_it = words.next() == Some(name);
        is_it.then(|| match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => number.parse().ok(),
        })?
    })
}

fn runnable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// Returns the patterns that one with `{a,b}` and `~` stands for.
fn expanded(pattern: &str) -> Vec<String> {
    let mut done = Vec::new();
    let mut open = vec![pattern.to_owned()];
    while let Some(pattern) = open.pop() {
        let inside = pattern.split_once('{').and_then(|(before, rest)| {
            let (choices, after) = rest.split_once('}')?;
            Some((before.to_owned(), choices.to_owned(), after.to_owned()))
        });
        let Some((before, choices, after)) = inside.filter(|_| open.len() < PATTERNS_MAX) else {
            done.push(at_home(pattern));
            continue;
        };
        open.extend(choices.split(',').rev().map(|choice| format!("{before}{choice}{after}")));
    }
    done
}

fn at_home(pattern: String) -> String {
    match (pattern.strip_prefix("~/"), std::env::var("HOME")) {
        (Some(rest), Ok(home)) => format!("{home}/{rest}"),
        _ => pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_among_comments() {
        let text = "# 7\tseven\n255\tlocal\n0x10 low # 9 nine\n\n100\tuplink # mine\n";
        let found = ["seven", "local", "low", "nine", "uplink"].map(|name| number_in(text, name));
        assert_eq!(found, [None, Some(255), Some(16), None, Some(100)]);
    }

    #[test]
    fn braces_are_expanded_in_order() {
        assert_eq!(expanded("/a/{b,c}{1,2}*"), ["/a/b1*", "/a/b2*", "/a/c1*", "/a/c2*"]);
        assert_eq!(expanded("x{"), ["x{"]);
    }
}
