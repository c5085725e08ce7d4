//! The exhaustive search.

use std::collections::{BTreeMap, HashMap};
use std::{iter, mem};

use crate::Mistake;
use crate::steps::Step;
use crate::world::{Invariant, World};

/// Every reachable world, in breadth-first order. So the path to the first broken world is a shortest one.
pub(crate) struct Search<const N: usize> {
    pub(crate) worlds: Vec<World<N>>,
    /// The first world that breaks each invariant.
    pub(crate) broken: BTreeMap<Invariant, usize>,
    /// The world from which each world was reached first.
    previous: Vec<u32>,
    /// The calm steps as `(to, from)`.
    calm: Vec<(u32, u32)>,
}

impl<const N: usize> Search<N> {
    pub(crate) fn of(stock: u8, mistake: Option<Mistake>) -> Self {
        let start = World::new(stock, mistake);
        let mut known = HashMap::from([(start.code(), 0)]);
        let mut search = Self { worlds: vec![start], broken: BTreeMap::new(), previous: vec![0], calm: Vec::new() };
        for at in 0.. {
            let Some(world) = search.worlds.get(at).copied() else { break };
            match world.broken() {
                Some(invariant) => _ = search.broken.entry(invariant).or_insert(at), // not explored further
                None => search.explore(at, &world, &mut known),
            }
        }
        search
    }

    fn explore(&mut self, at: usize, world: &World<N>, known: &mut HashMap<u64, u32>) {
        let at = number(at);
        for (step, after) in world.steps() {
            let after = after.sorted();
            let new = number(self.worlds.len());
            let to = *known.entry(after.code()).or_insert(new);
            if to == new {
                self.worlds.push(after);
                self.previous.push(at);
            }
            if step.is_calm {
                self.calm.push((to, at));
            }
        }
    }

    /// Returns a world that the calm steps alone cannot settle, by a backward search from all settled worlds.
    pub(crate) fn stuck(&mut self) -> Option<usize> {
        self.calm.sort_unstable();
        let mut can_settle: Vec<_> = self.worlds.iter().map(World::is_settled).collect();
        let mut open: Vec<_> = (0..can_settle.len()).filter(|at| can_settle[*at]).map(number).collect();
        while let Some(at) = open.pop() {
            let first = self.calm.partition_point(|(to, _)| *to < at);
            for (_, from) in self.calm[first..].iter().take_while(|(to, _)| *to == at) {
                if !mem::replace(&mut can_settle[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        can_settle.iter().position(|can| !can)
    }

    pub(crate) fn broken_paths(&self) -> String {
        self.broken.iter().map(|(invariant, at)| format!("\n{invariant:?} is broken after{}", self.path(*at))).collect()
    }

    /// Returns the shortest path to a world, one step per line.
    ///
    /// The search has sorted the attempts of each world. The path is replayed without sorting, so that each attempt
    /// keeps its name.
    pub(crate) fn path(&self, to: usize) -> String {
        let back = |at: &usize| (*at > 0).then(|| self.previous[*at] as usize);
        let mut codes: Vec<_> = iter::successors(Some(to), back).map(|at| self.worlds[at].code()).collect();
        let mut world = self.worlds[0];
        let mut path = String::new();
        codes.pop();
        while let Some(next) = codes.pop() {
            let leads_there = |(_, after): &(Step, World<N>)| after.sorted().code() == next;
            let (step, after) = world.steps().find(leads_there).expect("the search has made this step");
            path += &step.describe(&after);
            world = after;
        }
        path
    }
}

/// Stores an index in half its size; enough for 4 billion worlds.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 worlds")
}
