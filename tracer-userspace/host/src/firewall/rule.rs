//! One rule, reduced to its effect on an INVALID packet or on a source address.

use rsttrace_model::firewall::{Answer, Outgoing};

/// One part of a rule, from left to right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A test of the conntrack state, and whether an INVALID packet passes it.
    State(bool),
    /// A test of the protocol, and whether TCP passes it.
    Protocol(bool),
    Out(Outgoing),
    /// Any other test, which may not match.
    Narrow,
    Answer(Answer),
    Masquerade,
    Jump(String),
}

/// The effect of a rule on INVALID packets or on source addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Answers { answer: Answer, narrowed: bool },
    Masquerades(Outgoing),
    Jumps(String),
}

/// `None` for a rule without such an effect.
pub(super) fn effect(steps: Vec<Step>) -> Option<Effect> {
    let (mut by_state, mut passes, mut narrowed) = (false, true, false);
    let mut outgoing = Outgoing::All;
    for step in steps {
        match step {
            Step::State(it) => {
                by_state = true;
                passes &= it;
            }
            Step::Protocol(it) => passes &= it,
            Step::Out(out) => {
                narrowed = true;
                outgoing = out;
            }
            Step::Narrow => narrowed = true,
            // INVALID packets are never masqueraded, whatever the rule tests.
            Step::Masquerade => return Some(Effect::Masquerades(outgoing)),
            Step::Answer(answer) => {
                return (by_state && passes).then_some(Effect::Answers { answer, narrowed });
            }
            Step::Jump(chain) => return passes.then_some(Effect::Jumps(chain)),
        }
    }
    None
}
