//! One service as the command and the data plane see it, between two edits only what is stored.

use rlvs_control::ring::{Kind, Member, Ring, State, build, resume};

pub(crate) struct Director {
    pub(crate) kind: Kind,
    pub(crate) members: Vec<Member>,
    pub(crate) ring: Ring,
    pub(crate) position: u64,
}

impl Director {
    pub(crate) fn new(kind: Kind, position: u64) -> Self {
        let ring = build(&[], State::new(kind, &[]), position);
        Self { kind, members: Vec::new(), ring, position }
    }

    /// Picks as the data plane does.
    pub(crate) fn pick(&mut self) -> Option<u32> {
        let length = self.ring.elements.len() as u64;
        if length == 0 {
            return None;
        }
        let position = self.position;
        self.position = position.wrapping_add(1);
        Some(self.ring.elements[(position % length) as usize])
    }

    pub(crate) fn picks(&mut self, count: usize) -> Vec<u32> {
        (0..count).map_while(|_| self.pick()).collect()
    }

    pub(crate) fn state(&self) -> State {
        resume(self.kind, &self.members, self.ring.stored, self.position)
    }

    pub(crate) fn add(&mut self, id: u32, weight: u32) {
        let state = self.state();
        self.members.insert(0, Member { id, weight });
        self.put(state.changed(&self.members));
    }

    pub(crate) fn edit(&mut self, id: u32, weight: u32) {
        let state = self.state();
        let member = self.members.iter_mut().find(|member| member.id == id);
        member.expect("the destination is there").weight = weight;
        self.put(state.changed(&self.members));
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let state = self.state().removed(&self.members, id);
        self.members.retain(|member| member.id != id);
        self.put(state);
    }

    pub(crate) fn change_scheduler(&mut self, kind: Kind) {
        self.kind = kind;
        self.put(State::new(kind, &self.members));
    }

    /// Lays the ring out again although nothing has changed.
    pub(crate) fn rebuild(&mut self) {
        self.put(self.state());
    }

    fn put(&mut self, state: State) {
        self.ring = build(&self.members, state, self.position);
    }
}
