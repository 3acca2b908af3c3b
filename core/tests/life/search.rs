//! Breadth first through every reachable world, so that a counterexample is a shortest one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use crate::{
    actions::{Action, Rules},
    mix::ByFingerprint,
    properties::{Healer, Property, Reached},
    state::{World, summary},
};

pub(crate) struct Search {
    pub(crate) rules: Rules,
    pub(crate) start: World,
    /// What to look at in each world; the search ends early when all of it is broken.
    pub(crate) properties: Vec<Property>,
}

/// What a search found.
pub(crate) struct Found {
    pub(crate) worlds: usize,
    /// Each broken property with the shortest way to break it.
    pub(crate) broken: BTreeMap<Property, String>,
    pub(crate) reached: BTreeSet<Reached>,
}

/// How a world was first reached: from which one, by which of its actions.
struct Step {
    from: u64,
    action: usize,
}

impl Search {
    pub(crate) fn run(&self) -> Found {
        let mut found = Found { worlds: 0, broken: BTreeMap::new(), reached: BTreeSet::new() };
        let mut healer = Healer::new(self.rules);
        let mut steps: ByFingerprint<Step> = ByFingerprint::default();
        let mut actions = Vec::new();
        let mut layer = vec![(self.start.fingerprint(), self.start.clone())];
        while !layer.is_empty() && found.broken.len() < self.properties.len() {
            let mut next_layer = Vec::new();
            for (from, world) in &layer {
                self.look_at(*from, world, &mut healer, &steps, &mut found);
                actions.clear();
                world.actions(&self.rules, &mut actions);
                for (number, action) in actions.iter().enumerate() {
                    let next = world.apply(*action, &self.rules);
                    let fingerprint = next.fingerprint();
                    steps.entry(fingerprint).or_insert_with(|| {
                        next_layer.push((fingerprint, next));
                        Step { from: *from, action: number }
                    });
                }
            }
            layer = next_layer;
        }
        found
    }

    fn look_at(
        &self,
        fingerprint: u64,
        world: &World,
        healer: &mut Healer,
        steps: &ByFingerprint<Step>,
        found: &mut Found,
    ) {
        found.worlds += 1;
        found.reached.extend(Reached::ALL.into_iter().filter(|reached| reached.is_reached(world)));
        for property in &self.properties {
            if !found.broken.contains_key(property) && !property.holds(world, healer) {
                found.broken.insert(*property, self.way_to(fingerprint, steps));
            }
        }
    }

    /// Replays the actions that lead there, a line each.
    fn way_to(&self, there: u64, steps: &ByFingerprint<Step>) -> String {
        let mut world = self.start.clone();
        let start = world.fingerprint();
        let mut way = Vec::new();
        let mut at = there;
        while at != start {
            let step = steps.get(&at).expect("every world but the first was reached from another");
            way.push(step.action);
            at = step.from;
        }
        let mut text = String::new();
        for number in way.into_iter().rev() {
            let mut actions: Vec<Action> = Vec::new();
            world.actions(&self.rules, &mut actions);
            let action = actions[number];
            writeln!(text, "  {}\n    -> {action:?}", summary(&world)).expect("a String takes everything");
            world = world.apply(action, &self.rules);
        }
        writeln!(text, "  {}", summary(&world)).expect("a String takes everything");
        text
    }
}
