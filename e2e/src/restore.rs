//! One run of the fuzzer of `ipvsadm -R`: any text as lines to restore, on a table in memory.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::rc::Rc;

use rlvs::ipvsadm::{Environment, Names, run as ipvsadm};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::{
    Connection, Destination, DestinationId, Service, ServiceEntry, ServiceId, Timeouts,
};
use rlvs_control::table::{Error, Table};

/// What is in the table before.
const BEFORE: &str = "\
-A -t 10.0.0.1:80 -s wrr
-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3 -x 20 -y 10
-A -f 7 -s rr -p 60
-a -f 7 -r 10.0.0.3 -i --tun-type gue --tun-port 6080
";

/// A table that outlives the commands that open it.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<MemoryTable>>);

macro_rules! shared {
    ($(fn $name:ident($($argument:ident: $of:ty),*) -> $answer:ty;)*) => {
        impl Table for Shared {
            $(fn $name(&mut self, $($argument: $of),*) -> Result<$answer, Error> {
                self.0.borrow_mut().$name($($argument),*)
            })*
        }
    };
}

shared! {
    fn add_service(service: &Service) -> ();
    fn edit_service(service: &Service) -> ();
    fn delete_service(id: ServiceId) -> ();
    fn add_destination(service: ServiceId, to: &Destination) -> ();
    fn edit_destination(service: ServiceId, to: &Destination) -> ();
    fn delete_destination(service: ServiceId, id: DestinationId) -> ();
    fn flush() -> ();
    fn services() -> Vec<ServiceEntry>;
    fn connections() -> Vec<Connection>;
    fn timeouts() -> Timeouts;
    fn set_timeouts(timeouts: Timeouts) -> ();
    fn zero(service: Option<ServiceId>) -> ();
    fn connection_table_size() -> u32;
}

impl Shared {
    /// Runs `ipvsadm` on the table, and returns its exit status and what it printed.
    fn run(&self, words: &[&str], stdin: &[u8]) -> (u8, String) {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let environment = Environment {
            open: &mut |_| Ok(Box::new(self.clone())),
            backend: None,
            names: &Names::fixed("http 80/tcp\n", &[]),
            stdin: &mut &*stdin,
            stdout: &mut stdout,
            stderr: &mut stderr,
        };
        let status = ipvsadm(&words, "ipvsadm", environment);
        (status, String::from_utf8(stdout).expect("text"))
    }

    /// Returns a table of what [`BEFORE`] says.
    fn filled() -> Self {
        let table = Self::default();
        assert_eq!(table.run(&["-R"], BEFORE.as_bytes()).0, 0);
        table
    }

    fn saved(&self) -> String {
        let (status, saved) = self.run(&["-S", "-n", "--full"], b"");
        assert_eq!(status, 0);
        saved
    }
}

/// Restores a text line by line and whole.
///
/// # Panics
/// If a promise is broken: another exit status than those of `ipvsadm`, a table that is saved and not
/// restored alike, a whole restore that is refused and changes something, or does otherwise than its
/// lines one by one.
pub fn run(text: &[u8]) {
    // The order may differ: of addresses more than half the space apart upstream's comparison runs in a
    // circle, and what a whole restore removes and adds again stays in place.
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let table = Shared::filled();
    let (status, _) = table.run(&["-R"], text);
    assert!([0, 1, 2, 255].contains(&status), "{status}");
    let saved = table.saved();
    // A mark of 2^31 and more is saved in a way that cannot be read, as upstream.
    if !saved.contains("-f -") {
        let other = Shared::default();
        let (status, printed) = other.run(&["-R"], saved.as_bytes());
        assert_eq!((status, printed.as_str()), (0, ""), "{saved}");
        assert_eq!(lines(&other.saved()), lines(&saved));
    }
    let whole = Shared::filled();
    let before = whole.saved();
    let (status, _) = whole.run(&["-R", "--atomic"], text);
    assert!([0, 1, 2, 255].contains(&status), "{status}");
    if status == 0 {
        assert_eq!(lines(&whole.saved()), lines(&saved));
    } else {
        assert_eq!(whole.saved(), before);
    }
}
