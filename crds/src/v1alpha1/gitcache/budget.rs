//! How much of a pod's disk mirrors may fill.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::v1alpha1::Quantity;

/// How much of a pod's disk mirrors may fill.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// A share of the volume (`80%`, the default) or an amount (`500Gi`). Above it, the mirrors longest not asked for are
    /// removed from the pod; they come back from the store when they are asked for.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self.matches('^([1-9][0-9]?|100)%$') || (isQuantity(self) && quantity(self).isGreaterThan(quantity('0')))")
        .message("must be a percentage from 1% to 100% or a quantity above zero such as 500Gi"))]
    pub budget: Budget,
}

/// A share of the volume, or an amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// Percent of the volume, 1 to 100.
    Percent(u8),
    /// An amount of bytes.
    Bytes(Quantity),
}

impl Budget {
    /// The budget in bytes on a volume of this size.
    pub fn bytes_of(&self, volume: u64) -> u64 {
        match self {
            // Divided first: a volume of exbibytes must not overflow, and a byte more or less is nothing.
            Self::Percent(percent) => volume / 100 * u64::from(*percent),
            Self::Bytes(quantity) => quantity.value(),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::Percent(80)
    }
}

/// A text that is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a percentage from 1% to 100% or a quantity above zero such as 500Gi")]
pub struct BudgetError;

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        if let Some(percent) = text.strip_suffix('%') {
            let digits = !percent.starts_with(['+', '0']);
            let percent = percent.parse().ok().filter(|percent| digits && *percent <= 100);
            return percent.map(Self::Percent).ok_or(BudgetError);
        }
        let quantity: Quantity = text.parse().map_err(|_| BudgetError)?;
        if quantity.value() == 0 { Err(BudgetError) } else { Ok(Self::Bytes(quantity)) }
    }
}

impl TryFrom<String> for Budget {
    type Error = BudgetError;

    fn try_from(text: String) -> Result<Self, BudgetError> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(quantity) => write!(f, "{quantity}"),
        }
    }
}

impl JsonSchema for Budget {
    fn schema_name() -> Cow<'static, str> {
        "Budget".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 32})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_or_amounts() {
        for (text, bytes) in [("80%", 800), ("100%", 1000), ("1%", 10), ("1Ki", 1024), ("5", 5)] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!((budget.bytes_of(1000), budget.to_string().as_str()), (bytes, text));
        }
    }

    #[test]
    fn what_is_no_budget_is_refused() {
        for text in ["", "0%", "101%", "-1%", "+5%", "080%", "8 0%", "0", "0Gi", "x", "-5Gi"] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetError), "{text}");
        }
    }
}
