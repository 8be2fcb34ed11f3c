//! Drives the `ipvsadm` face as a user does: words in, text and an exit status out.

use std::cell::{Cell, RefCell, RefMut};
use std::ffi::OsString;
use std::net::IpAddr;
use std::rc::Rc;

use rlvs::face;
use rlvs::ipvsadm::{Backend, Environment, Names, run};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::{
    Connection, Destination, DestinationId, Service, ServiceEntry, ServiceId, Timeouts,
};
use rlvs_control::table::{Error, Table};
use rlvs_linux::ipvs::table::KernelTable;

/// As much of a services file as the recorded runs speak of.
const SERVICES: &str = "\
ssh 22/tcp
domain 53/tcp
domain 53/udp
bootps 67/udp
http 80/tcp www # WorldWideWeb HTTP
https 443/tcp
https 443/udp
sip 5060/tcp
sip 5060/udp
sip-tls 5061/tcp
http-alt 8080/tcp webcache
";

/// A table that outlives the commands that open it.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    pub(crate) memory: Rc<RefCell<MemoryTable>>,
    /// Makes it answer that it does not yet carry things out.
    pub(crate) cannot: Rc<Cell<bool>>,
}

/// The machine that commands run on.
pub(crate) struct Machine {
    pub(crate) table: Shared,
    /// Whose table commands get in place of the one in memory.
    backend: Option<Backend>,
    names: Names,
}

/// What one command did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) opened: bool,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with_hosts(&[("localhost", [127, 0, 0, 1].into())])
    }

    pub(crate) fn with_hosts(hosts: &[(&str, IpAddr)]) -> Self {
        Self { table: Shared::default(), backend: None, names: Names::fixed(SERVICES, hosts) }
    }

    /// Returns a machine whose table is the kernel's, made as empty as a fresh one.
    pub(crate) fn with_kernel() -> Self {
        let mut table = KernelTable::open().unwrap();
        table.flush().unwrap();
        table.set_timeouts(MemoryTable::default().timeouts().unwrap()).unwrap();
        for daemon in table.sync_daemons().unwrap() {
            table.stop_sync_daemon(daemon.role).unwrap();
        }
        Self::with_kernel_as_it_is()
    }

    /// Returns a machine whose table is the kernel's.
    pub(crate) fn with_kernel_as_it_is() -> Self {
        Self { backend: Some(Backend::Kernel), ..Self::new() }
    }

    /// Returns a machine whose table is our own, in the maps of the calling thread's network namespace, made
    /// as empty as a fresh one.
    pub(crate) fn with_own() -> Self {
        let mut table = face::open_table(Backend::Rlvs).unwrap();
        table.flush().unwrap();
        table.set_timeouts(MemoryTable::default().timeouts().unwrap()).unwrap();
        Self { backend: Some(Backend::Rlvs), ..Self::new() }
    }

    /// Returns the machine with the names that this system has.
    pub(crate) fn with_system_names(self) -> Self {
        Self { names: Names::system(), ..self }
    }

    /// Runs `ipvsadm` with the words of `line`, which are apart by blanks.
    pub(crate) fn run(&self, line: &str) -> Outcome {
        self.run_words(&line.split_whitespace().collect::<Vec<_>>(), "")
    }

    pub(crate) fn run_words(&self, words: &[impl AsRef<str>], stdin: &str) -> Outcome {
        self.run_face(run, words, stdin)
    }

    pub(crate) fn run_face(
        &self,
        face: fn(&[OsString], &'static str, Environment<'_>) -> u8,
        words: &[impl AsRef<str>],
        stdin: &str,
    ) -> Outcome {
        let args: Vec<_> = words.iter().map(|word| OsString::from(word.as_ref())).collect();
        let opened = Cell::new(false);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let environment = Environment {
            open: &mut |_| {
                opened.set(true);
                match self.backend {
                    Some(backend) => face::open_table(backend),
                    None => Ok(Box::new(self.table.clone())),
                }
            },
            backend: None,
            names: &self.names,
            stdin: &mut stdin.as_bytes(),
            stdout: &mut stdout,
            stderr: &mut stderr,
        };
        let status = face(&args, "ipvsadm", environment);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { status, stdout: text(stdout), stderr: text(stderr), opened: opened.get() }
    }

    /// Runs a command that must succeed, and returns its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        let outcome = self.run(line);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{line}");
        outcome.stdout
    }
}

impl Shared {
    fn able(&self) -> Result<RefMut<'_, MemoryTable>, Error> {
        match self.cannot.get() {
            true => Err(Error::NotYet("this".to_owned())),
            false => Ok(self.memory.borrow_mut()),
        }
    }
}

impl Table for Shared {
    fn add_service(&mut self, service: &Service) -> Result<(), Error> {
        self.able()?.add_service(service)
    }
    fn edit_service(&mut self, service: &Service) -> Result<(), Error> {
        self.memory.borrow_mut().edit_service(service)
    }
    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.memory.borrow_mut().delete_service(id)
    }
    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.memory.borrow_mut().add_destination(service, to)
    }
    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        self.memory.borrow_mut().edit_destination(service, to)
    }
    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.memory.borrow_mut().delete_destination(service, id)
    }
    fn flush(&mut self) -> Result<(), Error> {
        self.memory.borrow_mut().flush()
    }
    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        self.able()?.services()
    }
    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        self.memory.borrow_mut().connections()
    }
    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        self.memory.borrow_mut().timeouts()
    }
    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        self.memory.borrow_mut().set_timeouts(timeouts)
    }
    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        self.memory.borrow_mut().zero(service)
    }
    fn connection_table_size(&mut self) -> Result<u32, Error> {
        self.memory.borrow_mut().connection_table_size()
    }
}
