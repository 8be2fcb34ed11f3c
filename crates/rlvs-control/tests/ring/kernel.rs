//! The kernel's rr and wrr, step by step as ipvs.md §2.2 and §2.3 tell them: no rings, no sums.

use rlvs_control::ring::{Kind, Member};

/// 0 as a destination stands for HEAD.
pub(crate) struct Kernel {
    pub(crate) kind: Kind,
    pub(crate) list: Vec<Member>,
    /// rr: `pos`.
    pub(crate) pos: u32,
    pub(crate) cl: u32,
    pub(crate) cw: i64,
    mw: i64,
    di: i64,
}

impl Kernel {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut kernel = Self { kind, list: Vec::new(), pos: 0, cl: 0, cw: 0, mw: 0, di: 0 };
        kernel.init(kind);
        kernel
    }

    pub(crate) fn init(&mut self, kind: Kind) {
        self.kind = kind;
        self.pos = 0;
        self.measure();
        self.cw = self.mw;
    }

    pub(crate) fn add(&mut self, id: u32, weight: u32) {
        self.list.insert(0, Member { id, weight });
        self.changed();
    }

    pub(crate) fn edit(&mut self, id: u32, weight: u32) {
        for member in &mut self.list {
            if member.id == id {
                member.weight = weight;
            }
        }
        self.changed();
    }

    pub(crate) fn del(&mut self, id: u32) {
        if self.pos == id {
            let place = self.place(id);
            self.pos = if place == 0 { 0 } else { self.list[place - 1].id };
        }
        self.list.retain(|member| member.id != id);
        self.changed();
    }

    pub(crate) fn pick(&mut self) -> Option<u32> {
        match self.kind {
            Kind::Rr => self.pick_rr(),
            Kind::Wrr => self.pick_wrr(),
        }
    }

    fn pick_rr(&mut self) -> Option<u32> {
        let start = self.after(self.pos);
        let order = (start..self.list.len()).chain(0..start);
        for place in order {
            if self.list[place].weight > 0 {
                self.pos = self.list[place].id;
                return Some(self.pos);
            }
        }
        None
    }

    fn pick_wrr(&mut self) -> Option<u32> {
        if self.mw == 0 {
            return None;
        }
        // Without overload a destination of the highest weight ends the loop.
        loop {
            for place in self.after(self.cl)..self.list.len() {
                if i64::from(self.list[place].weight) >= self.cw {
                    self.cl = self.list[place].id;
                    return Some(self.cl);
                }
            }
            self.cl = 0;
            self.cw -= self.di;
            if self.cw <= 0 {
                self.cw = self.mw;
            }
        }
    }

    fn changed(&mut self) {
        self.measure();
        if self.cw > self.mw || self.cw == 0 {
            self.cw = self.mw;
        } else if self.di > 1 {
            self.cw = (self.cw / self.di) * self.di + 1;
        }
    }

    fn measure(&mut self) {
        let weights = || self.list.iter().map(|member| i64::from(member.weight));
        let largest = weights().max().unwrap_or(0);
        // By definition, so that it shares no mistake with Euclid's algorithm.
        let divides = |divisor: &i64| weights().all(|weight| weight % divisor == 0);
        self.di = (1..=largest).rev().find(divides).unwrap_or(1);
        self.mw = largest - (self.di - 1);
        self.cl = 0;
    }

    fn place(&self, id: u32) -> usize {
        self.list.iter().position(|member| member.id == id).expect("the destination is there")
    }

    fn after(&self, id: u32) -> usize {
        if id == 0 { 0 } else { self.place(id) + 1 }
    }
}
