//! Scripts that virtual routers follow: each has a thread that runs it again and again.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use rlvs_conf::desired::{Global, TrackedScript};

use super::{Happening, program};

/// The scripts that run.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    running: BTreeMap<String, Running>,
}

/// A script; its thread ends when this is dropped.
#[derive(Debug)]
struct Running {
    script: TrackedScript,
    global: Global,
    _end: Sender<()>,
}

impl Scripts {
    /// Runs these, and no others. Those that are the same go on.
    pub(super) fn update(
        &mut self,
        scripts: &[TrackedScript],
        global: &Global,
        to: &Sender<Happening>,
    ) -> std::io::Result<()> {
        let mut before = std::mem::take(&mut self.running);
        for script in scripts {
            let same = |one: &Running| {
                let users = |global: &Global| (global.script_user.clone(), global.script_security);
                one.script == *script && users(&one.global) == users(global)
            };
            let running = match before.remove(&script.name).filter(same) {
                Some(running) => running,
                None => begin(script.clone(), global.clone(), to.clone())?,
            };
            self.running.insert(script.name.clone(), running);
        }
        Ok(())
    }
}

fn begin(script: TrackedScript, global: Global, to: Sender<Happening>) -> std::io::Result<Running> {
    let (end, ended) = channel();
    let name = script.name.clone();
    let runner = Runner { script: script.clone(), global: global.clone(), to, said: None };
    std::thread::Builder::new().name(name).spawn(move || runner.run(&ended))?;
    Ok(Running { script, global, _end: end })
}

struct Runner {
    script: TrackedScript,
    global: Global,
    to: Sender<Happening>,
    /// What was last said of the result.
    said: Option<String>,
}

impl Runner {
    fn run(mut self, ended: &Receiver<()>) {
        loop {
            let begun = Instant::now();
            let script = &self.script;
            let (words, user) = (&script.command, script.user.as_ref());
            let result = program::run(words, user, &self.global, script.timeout);
            let good = result.is_ok();
            let why = result.err().unwrap_or_else(|| "it succeeds".to_owned());
            let news = (self.said.as_ref() != Some(&why)).then(|| why.clone());
            self.said = Some(why);
            let name = self.script.name.clone();
            if self.to.send(Happening::Script { name, good, news }).is_err() {
                return;
            }
            let rest = self.script.interval.saturating_sub(begun.elapsed());
            if ended.recv_timeout(rest) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}
