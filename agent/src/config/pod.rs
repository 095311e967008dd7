//! The pod around the agent.

/// The pod that the agent runs in, as the downward API tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `POD_NAME`.
    pub name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `POD_UID`.
    pub uid: String,
}

impl Pod {
    /// Reads the pod from variables.
    ///
    /// # Errors
    /// All that are missing.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut missing = Vec::new();
        let mut get = |name: &'static str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.unwrap_or_else(|| {
                missing.push(name);
                String::new()
            })
        };
        let pod = Self { name: get("POD_NAME"), namespace: get("POD_NAMESPACE"), uid: get("POD_UID") };
        if missing.is_empty() { Ok(pod) } else { Err(missing.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_three_variables() {
        let all = |name: &str| Some(format!("its {name}"));
        let pod = Pod::from_variables(all).unwrap();
        assert_eq!((pod.name.as_str(), pod.uid.as_str()), ("its POD_NAME", "its POD_UID"));
        let one = |name: &str| (name != "POD_UID").then(String::new);
        assert_eq!(Pod::from_variables(one).unwrap_err(), "POD_NAME, POD_NAMESPACE, POD_UID");
    }
}
