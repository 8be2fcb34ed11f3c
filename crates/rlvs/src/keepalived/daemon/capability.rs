//! What the kernel lets this process do.

use rlvs_linux::capability::{Capability, missing};

use super::configuration::Found;
use crate::configuration;
use crate::ipvsadm::Backend;

/// Returns why the daemon may not do what a configuration asks for, with each capability that it lacks.
pub(super) fn lacking(found: &Found, backend: Option<&str>) -> Option<String> {
    let mut needed = vec![Capability::NetAdmin, Capability::NetRaw];
    // What is wrong with the name of the backend is told where the table is opened.
    let ours = configuration::backend(backend).is_ok_and(|backend| backend == Backend::Rlvs);
    if ours && !found.desired.virtual_servers.is_empty() {
        needed.push(Capability::Bpf);
    }
    let purpose = |capability| match capability {
        Capability::NetRaw => "advertisements",
        Capability::Bpf => "the virtual-server table",
        _ => "addresses and the virtual-server table",
    };
    let line =
        |one: &Capability| format!("{} is missing, needed for {}", one.name(), purpose(*one));
    let lines: Vec<String> = missing(&needed).iter().map(line).collect();
    let all: Vec<_> = needed.iter().map(|one| one.name()).collect();
    (!lines.is_empty()).then(|| {
        let (lines, all) = (lines.join("; "), all.join(" "));
        format!("{lines}: run it as root, or with `AmbientCapabilities={all}` in its unit")
    })
}
