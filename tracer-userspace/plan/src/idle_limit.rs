//! The shortest idle limit of the path, and the keepalive times that stay below it.

use rsttrace_core::causes::remedy::Period;

use super::{Demand, Step, seconds};

/// Longest keepalive time, seconds. However long the limits are, dead peers must be detected and unknown
/// limits re-armed.
pub const MOST_PERIOD_S: u64 = 300;

/// The shortest limit after which the state of an idle connection is dropped without a FIN or RST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortestLimit {
    pub seconds: u64,
    pub name: String,
    /// All limits of the path.
    pub steps: Vec<Step>,
}

impl ShortestLimit {
    pub fn of(demand: &Demand) -> Self {
        let mut limits = Vec::new();
        if demand.ipvs {
            limits.push(("IPVS tcp".to_owned(), demand.now.ipvs_tcp_s));
        }
        limits.push(("conntrack established".to_owned(), demand.now.established_s));
        let others = demand.path.iter().filter(|limit| !limit.is_server());
        limits.extend(others.map(|limit| (limit.name.clone(), limit.seconds)));
        let mut steps: Vec<Step> = limits
            .iter()
            .map(|(name, limit)| Step::new(name, String::new(), seconds(*limit)))
            .collect();
        // Never empty: conntrack is always in the list.
        let (name, shortest) =
            limits.into_iter().min_by_key(|(_, limit)| *limit).unwrap_or((String::new(), 0));
        steps.push(Step::new("shortest", name.clone(), seconds(shortest)));
        Self { seconds: shortest, name, steps }
    }

    /// Keepalive times that re-arm this limit in time.
    pub fn keepalive(&self) -> Period {
        #[expect(clippy::cast_precision_loss, reason = "at most 31 bits")]
        Period::below(self.seconds.min(3 * MOST_PERIOD_S) as f64)
    }
}
