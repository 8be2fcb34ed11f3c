//! What `rlvs top` shows, and what keys do: no terminal, no clock.

use std::cmp::Reverse;

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use rlvs_control::model::{DestinationId, ServiceId};

use crate::drain::{destination_name, service_name};
use crate::ipvsadm::forward;
use crate::keepalived::daemon::state::Instance;
use crate::status::short;
use crate::status::snapshot::{Health, Server, Service, Snapshot};

const KEYS: &str = "q quit  s sort  / filter  ↑↓ select  d drain  u undrain";
/// Longest filter.
const FILTER_MAX: usize = 64;

/// By what servers are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Name,
    Connections,
    Rate,
    Bytes,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Connections,
            Self::Connections => Self::Rate,
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Name,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connections => "connections",
            Self::Rate => "connections/s",
            Self::Bytes => "bytes/s",
        }
    }

    /// Returns what is compared; the most comes first.
    fn key(self, server: &Server) -> Reverse<u64> {
        let (entry, rates) = (&server.entry, &server.rates);
        Reverse(match self {
            Self::Name => 0,
            Self::Connections => u64::from(entry.active) + u64::from(entry.inactive),
            Self::Rate => rates.connections,
            Self::Bytes => rates.in_bytes + rates.out_bytes,
        })
    }
}

/// What the terminal's owner is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Drain a destination.
    Drain(ServiceId, DestinationId),
    /// Give it back.
    Undrain(ServiceId, DestinationId),
}

/// What is shown.
pub(super) struct View {
    snapshot: Snapshot,
    sort: Sort,
    filter: String,
    /// Whether keys go to the filter.
    typing: bool,
    /// What is selected, which stays so wherever it moves.
    selected: Option<(ServiceId, DestinationId)>,
    told: Option<String>,
}

impl View {
    /// Returns one of everything, by name.
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let (filter, typing) = (String::new(), false);
        Self { snapshot, sort: Sort::Name, filter, typing, selected: None, told: None }
    }

    /// Takes in how everything is now.
    pub(super) fn see(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
    }

    /// Shows what went wrong, until the next key.
    pub(super) fn told(&mut self, what: Option<String>) {
        self.told = what;
    }

    /// Takes a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Act {
        self.told = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Act::Quit } else { Act::None };
        }
        if self.typing {
            self.type_filter(key.code);
            return Act::None;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Act::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::Char('d') => {
                return self.selected.map_or(Act::None, |(service, id)| Act::Drain(service, id));
            }
            KeyCode::Char('u') => {
                return self.selected.map_or(Act::None, |(service, id)| Act::Undrain(service, id));
            }
            _ => {}
        }
        Act::None
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.len() < FILTER_MAX => self.filter.push(letter),
            _ => {}
        }
    }

    fn select(&mut self, step: isize) {
        let rows: Vec<_> = self.rows().into_iter().map(of).collect();
        let now = self.selected.and_then(|one| rows.iter().position(|row| *row == one));
        let next = match now {
            Some(at) => at.saturating_add_signed(step).min(rows.len().saturating_sub(1)),
            None => 0,
        };
        self.selected = rows.get(next).copied();
    }

    /// Returns what the filter lets through, in order.
    fn rows(&self) -> Vec<(&Service, &Server)> {
        let mut rows: Vec<_> = self
            .snapshot
            .services
            .iter()
            .flat_map(|service| service.servers.iter().map(move |server| (service, server)))
            .filter(|row| self.lets_through(row))
            .collect();
        // Servers are by name before, and this keeps the order of equals.
        rows.sort_by_key(|(_, server)| self.sort.key(server));
        rows
    }

    fn lets_through(&self, &(service, server): &(&Service, &Server)) -> bool {
        let wanted = self.filter.to_lowercase();
        let texts = [
            service_name(service.entry.service.id),
            destination_name(server.entry.destination.id),
            state(server),
        ];
        texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    /// Draws it.
    pub(super) fn render(&self, frame: &mut Frame<'_>) {
        let head = self.head();
        let lines = u16::try_from(head.len()).unwrap_or(u16::MAX);
        let parts = [Constraint::Length(lines), Constraint::Min(1), Constraint::Length(1)];
        let [above, middle, below] = Layout::vertical(parts).areas(frame.area());
        frame.render_widget(Paragraph::new(head), above);
        let rows = self.rows();
        let at = self.selected.and_then(|one| rows.iter().position(|row| of(*row) == one));
        let mut state = TableState::new().with_selected(at);
        frame.render_stateful_widget(table(&rows), middle, &mut state);
        frame.render_widget(Paragraph::new(self.foot()), below);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let snapshot = &self.snapshot;
        let interfaces = snapshot.interfaces.iter();
        let interfaces: Vec<String> =
            interfaces.map(|one| format!("{} {}", one.name, one.mode.name())).collect();
        let (active, inactive, _) = snapshot.connections();
        let rates = &snapshot.total.rates;
        let mut lines = vec![
            Line::from(format!("rlvs top  {}", interfaces.join(", "))),
            Line::from(format!(
                "services {}  active {active}  inactive {inactive}  {} conn/s  in {}B/s  out {}B/s",
                snapshot.services.len(),
                short(rates.connections),
                short(rates.in_bytes),
                short(rates.out_bytes),
            )),
        ];
        let routers = snapshot.daemon.iter().flat_map(|daemon| &daemon.instances);
        let routers: Vec<String> = routers.map(router).collect();
        if !routers.is_empty() {
            lines.push(Line::from(routers.join("  ")));
        }
        lines
    }

    fn foot(&self) -> String {
        if let Some(told) = &self.told {
            return told.clone();
        }
        if self.typing {
            return format!("filter: {}_  (Enter keeps it, Esc drops it)", self.filter);
        }
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!("  filter: {filter}"),
        };
        format!("{KEYS}  sorted by {}{filter}", self.sort.name())
    }
}

fn of((service, server): (&Service, &Server)) -> (ServiceId, DestinationId) {
    (service.entry.service.id, server.entry.destination.id)
}

fn router(instance: &Instance) -> String {
    format!("{} {}", instance.name, format!("{:?}", instance.state).to_uppercase())
}

fn state(server: &Server) -> String {
    let health = match &server.health {
        Health::Unchecked => String::new(),
        Health::Up => "up".to_owned(),
        Health::Down(why) => format!("down: {why}"),
    };
    match (server.drained, health.is_empty()) {
        (false, _) => health,
        (true, true) => "drained".to_owned(),
        (true, false) => format!("drained, {health}"),
    }
}

fn table<'a>(rows: &[(&'a Service, &'a Server)]) -> Table<'a> {
    const HEAD: [&str; 10] = [
        "SERVER", "SERVICE", "FORWARD", "WEIGHT", "ACTIVE", "INACT", "CONN/S", "IN B/S", "OUT B/S",
        "STATE",
    ];
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let row = |&(service, server): &(&Service, &Server)| {
        let (entry, rates) = (&server.entry, &server.rates);
        let cells = [
            destination_name(entry.destination.id),
            service_name(service.entry.service.id),
            forward(entry.destination.method).to_owned(),
            entry.destination.weight.to_string(),
            entry.active.to_string(),
            entry.inactive.to_string(),
            short(rates.connections),
            short(rates.in_bytes),
            short(rates.out_bytes),
            state(server),
        ];
        Row::new(cells.map(Cell::from))
    };
    let widths = [
        Constraint::Min(20),
        Constraint::Min(24),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Min(8),
    ];
    Table::new(rows.iter().map(row), widths)
        .header(Row::new(HEAD).style(bold))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use rlvs_control::model::{
        Destination, DestinationEntry, ForwardingMethod, Protocol, ServiceEntry, Traffic,
    };
    use rlvs_linux::dataplane::attach::Mode;
    use rlvs_linux::dataplane::table::Total;

    use super::*;
    use crate::status::snapshot::{Defence, Interface};

    fn server(last: u8, active: u32, connections: u64, bytes: u64) -> Server {
        let id = DestinationId { address: [10, 0, 0, last].into(), port: 80 };
        let method = ForwardingMethod::Masquerade;
        let (upper_threshold, lower_threshold) = (0, 0);
        let destination = Destination { id, method, weight: 1, upper_threshold, lower_threshold };
        let traffic = Traffic::default();
        let entry = DestinationEntry { destination, active, inactive: 0, persistent: 0, traffic };
        let rates = Traffic { connections, in_bytes: bytes, ..traffic };
        Server { entry, rates, drained: false, health: Health::Up }
    }

    fn view() -> View {
        let address = [192, 0, 2, 1].into();
        let id = ServiceId::Address { protocol: Protocol::Tcp, address, port: 80 };
        let service = rlvs_control::model::Service {
            id,
            scheduler: "rr".to_owned(),
            scheduler_flags: 0,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        };
        let traffic = Traffic::default();
        let entry = ServiceEntry { service, traffic, destinations: Vec::new() };
        let mut servers = vec![server(1, 5, 1, 9000), server(2, 7, 0, 10), server(3, 0, 3, 0)];
        servers[2].drained = true;
        servers[1].health = Health::Down("no answer".to_owned());
        View::new(Snapshot {
            defence: Defence::default(),
            pins: String::new(),
            interfaces: vec![Interface { name: "eth0".to_owned(), mode: Mode::Native, why: "" }],
            unattached: Vec::new(),
            total: Total::default(),
            services: vec![Service { entry, rates: traffic, servers, absent: Vec::new() }],
            access: None,
            drained: Vec::new(),
            synchronisation: Vec::new(),
            reasons: Vec::new(),
            findings: Vec::new(),
            daemon: None,
        })
    }

    fn press(view: &mut View, keys: &str) -> Act {
        let mut last = Act::None;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                key => KeyCode::Char(key),
            };
            last = view.key(KeyEvent::from(code));
        }
        last
    }

    /// Returns the screen's lines without blanks at their ends.
    fn screen(view: &View) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(130, 8)).unwrap();
        terminal.draw(|frame| view.render(frame)).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end().to_owned()).collect()
    }

    /// Returns the last bytes of the servers' addresses from top to bottom.
    fn order(view: &View) -> Vec<String> {
        let lines = screen(view).into_iter().filter(|line| line.starts_with("10.0.0."));
        lines.map(|line| line.chars().nth(7).unwrap().to_string()).collect()
    }

    #[test]
    fn everything_is_on_the_screen() {
        let lines = screen(&view());
        assert_eq!(lines[0], "rlvs top  eth0 native XDP");
        assert!(lines[1].starts_with("services 1  active 12  inactive 0"), "{}", lines[1]);
        for (line, texts) in [
            (3, ["10.0.0.1:80", "TCP 192.0.2.1:80", "Masq", " 9.0k ", " up"]),
            (4, ["10.0.0.2:80", " 7 ", " 10 ", "down: no", "TCP"]),
            (5, ["10.0.0.3:80", " 3 ", "drained,", "Masq", "TCP"]),
        ] {
            for text in texts {
                assert!(lines[line].contains(text), "{text:?} in {:?}", lines[line]);
            }
        }
    }

    #[test]
    fn s_sorts_by_one_thing_after_the_other() {
        let mut view = view();
        assert_eq!(order(&view), ["1", "2", "3"]);
        for expected in [["2", "1", "3"], ["3", "1", "2"], ["1", "2", "3"], ["1", "2", "3"]] {
            press(&mut view, "s");
            assert_eq!(order(&view), expected, "{:?}", view.sort);
        }
    }

    #[test]
    fn a_filter_is_typed_kept_and_dropped() {
        let mut view = view();
        press(&mut view, "/dq");
        assert!(screen(&view)[7].starts_with("filter: dq_"), "{:?}", screen(&view));
        assert_eq!(order(&view), [""; 0]);
        view.key(KeyEvent::from(KeyCode::Backspace));
        press(&mut view, "rained\n");
        assert_eq!(order(&view), ["3"]);
        assert_eq!(press(&mut view, "/\x1b"), Act::None);
        assert_eq!(order(&view), ["1", "2", "3"]);
        assert_eq!(press(&mut view, "q"), Act::Quit);
    }

    #[test]
    fn what_is_selected_stays_so_wherever_it_goes() {
        let mut view = view();
        assert_eq!(press(&mut view, "d"), Act::None);
        press(&mut view, "jj");
        let Act::Drain(_, id) = press(&mut view, "d") else { panic!("nothing is selected") };
        assert_eq!(id, server(2, 0, 0, 0).entry.destination.id);
        press(&mut view, "sss");
        let Act::Undrain(_, same) = press(&mut view, "u") else { panic!("nothing is selected") };
        assert_eq!(same, id);
        press(&mut view, "jjjjj");
        let Act::Drain(_, last) = press(&mut view, "d") else { panic!("nothing is selected") };
        assert_eq!(last, server(3, 0, 0, 0).entry.destination.id);
    }
}
