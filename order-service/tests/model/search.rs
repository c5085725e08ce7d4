//! Everything that can come about.

use std::collections::{BTreeMap, HashMap};
use std::{iter, mem};

use crate::Mistake;
use crate::steps::Step;
use crate::world::{Invariant, World};

/// Every world that can come about, nearest first: so the first one that is wrong is told by the shortest way there.
pub(crate) struct Search<const N: usize> {
    pub(crate) worlds: Vec<World<N>>,
    /// For each invariant that can be broken, the first world in which it is.
    pub(crate) broken: BTreeMap<Invariant, usize>,
    /// From where each world was reached first.
    before: Vec<u32>,
    /// The calm steps: to which world, from which.
    calm: Vec<(u32, u32)>,
}

impl<const N: usize> Search<N> {
    pub(crate) fn of(stock: u8, mistake: Option<Mistake>) -> Self {
        let start = World::new(stock, mistake);
        let mut known = HashMap::from([(start.code(), 0)]);
        let mut search = Self { worlds: vec![start], broken: BTreeMap::new(), before: vec![0], calm: Vec::new() };
        for at in 0.. {
            let Some(world) = search.worlds.get(at).copied() else { break };
            match world.broken() {
                Some(invariant) => _ = search.broken.entry(invariant).or_insert(at), // and it is followed no further
                None => search.follow(at, &world, &mut known),
            }
        }
        search
    }

    fn follow(&mut self, at: usize, world: &World<N>, known: &mut HashMap<u64, u32>) {
        let at = number(at);
        for (step, after) in world.steps() {
            let after = after.sorted();
            let new = number(self.worlds.len());
            let to = *known.entry(after.code()).or_insert(new);
            if to == new {
                self.worlds.push(after);
                self.before.push(at);
            }
            if step.is_calm {
                self.calm.push((to, at));
            }
        }
    }

    /// A world that the calm steps alone cannot settle, if there is one. It looks backwards, from all that are settled.
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
        self.broken
            .iter()
            .map(|(invariant, at)| format!("\n{invariant:?} is broken, after{}", self.path(*at)))
            .collect()
    }

    /// The shortest way to a world, in words, a step a line. The search sorted the attempts of each world on the way;
    /// this goes the same way again without, so that each keeps its name.
    pub(crate) fn path(&self, to: usize) -> String {
        let back = |at: &usize| (*at > 0).then(|| self.before[*at] as usize);
        let mut way: Vec<_> = iter::successors(Some(to), back).map(|at| self.worlds[at].code()).collect();
        let mut world = self.worlds[0];
        let mut path = String::new();
        way.pop();
        while let Some(next) = way.pop() {
            let leads_there = |(_, after): &(Step, World<N>)| after.sorted().code() == next;
            let (step, after) = world.steps().find(leads_there).expect("a step that the search has made");
            path += &step.tell(&after);
            world = after;
        }
        path
    }
}

/// Half the size of an index, and enough for four thousand million worlds.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer worlds than that")
}
