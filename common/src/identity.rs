//! Who a peer is: one URI in its certificate's subject alternative names.
//!
//! `tidemark://agent/<cluster>/<node>`, `tidemark://coordinator/<name>`, `tidemark://operator/<name>`. A certificate
//! carries exactly one of these. Peers of the fleet are checked by chain and this URI, not by host name: cluster and
//! node names may hold `_` and long labels, which DNS names may not, and a restore to new machines moves an identity to
//! new addresses. Host names stand in coordinator certificates for other HTTPS clients (curl, browsers) alone.

use std::fmt;
use std::str::FromStr;

use tidemark_proto::{ClusterName, Error, NodeName, Result};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Scheme of identity URIs.
pub const SCHEME: &str = "tidemark://";

/// The identity in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The agent of one node.
    Agent {
        /// Its cluster.
        cluster: ClusterName,
        /// Its node.
        node: NodeName,
    },
    /// A coordinator.
    Coordinator {
        /// Its name: the same letters as a node name.
        name: String,
    },
    /// A person or a script that works the fleet.
    Operator {
        /// The name that the audit log shows: the same letters as a node name.
        name: String,
    },
}

impl Identity {
    /// The identity of an agent.
    pub fn agent(cluster: ClusterName, node: NodeName) -> Self {
        Self::Agent { cluster, node }
    }

    /// The identity of a coordinator; the name has the letters of a node name.
    pub fn coordinator(name: &str) -> Result<Self> {
        Ok(Self::Coordinator { name: checked(name, "coordinator")? })
    }

    /// The identity of an operator; the name has the letters of a node name.
    pub fn operator(name: &str) -> Result<Self> {
        Ok(Self::Operator { name: checked(name, "operator")? })
    }

    /// `agent`, `coordinator` or `operator`.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "agent",
            Self::Coordinator { .. } => "coordinator",
            Self::Operator { .. } => "operator",
        }
    }

    /// Reads the identity of a DER certificate. Nothing is said about who signed it.
    pub fn of_certificate(der: &[u8]) -> Result<Self> {
        let (_, cert) = X509Certificate::from_der(der)
            .map_err(|e| Error::denied("the certificate cannot be read").with_source(e.to_string()))?;
        let names = cert.subject_alternative_name().map_err(|e| {
            Error::denied("the certificate's alternative names cannot be read").with_source(e.to_string())
        })?;
        let mut uris = names.iter().flat_map(|n| &n.value.general_names).filter_map(|n| match n {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            (None, _) => Err(Error::denied(
                "the certificate carries no Tidemark identity: issue one with `tidemark pki issue`",
            )),
            (Some(_), Some(_)) => Err(Error::denied("the certificate carries more than one Tidemark identity")),
        }
    }
}

fn checked(name: &str, role: &str) -> Result<String> {
    let name = NodeName::new(name).map_err(|e| e.context(format!("name of {role}")))?;
    Ok(name.as_str().to_owned())
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { cluster, node } => write!(f, "{SCHEME}agent/{cluster}/{node}"),
            Self::Coordinator { name } => write!(f, "{SCHEME}coordinator/{name}"),
            Self::Operator { name } => write!(f, "{SCHEME}operator/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::denied(format!("`{s}` is no Tidemark identity"));
        let path = s.strip_prefix(SCHEME).ok_or_else(bad)?;
        match path.split('/').collect::<Vec<_>>()[..] {
            ["agent", cluster, node] => Ok(Self::agent(
                ClusterName::new(cluster).map_err(|_| bad())?,
                NodeName::new(node).map_err(|_| bad())?,
            )),
            ["coordinator", name] => Self::coordinator(name).map_err(|_| bad()),
            ["operator", name] => Self::operator(name).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

/// Whom the dialling side expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Any coordinator of the fleet.
    Coordinator,
    /// Exactly this agent.
    Agent {
        /// Its cluster.
        cluster: ClusterName,
        /// Its node.
        node: NodeName,
    },
}

impl Expected {
    /// Refuses an identity that is not the expected one.
    pub fn check(&self, found: &Identity) -> Result<()> {
        let fits = match (self, found) {
            (Self::Coordinator, Identity::Coordinator { .. }) => true,
            (Self::Agent { cluster, node }, Identity::Agent { cluster: c, node: n }) => cluster == c && node == n,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Error::denied(format!("expected {self} but found {found}: check the address and its certificate")))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("a coordinator"),
            Self::Agent { cluster, node } => write!(f, "{SCHEME}agent/{cluster}/{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_come_back_and_strangers_are_refused() {
        for uri in ["tidemark://agent/orders.eu/n_1", "tidemark://coordinator/c1", "tidemark://operator/alice"] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
        for bad in [
            "https://agent/a/b",
            "tidemark://agent/a",
            "tidemark://agent/a/b/c",
            "tidemark://operator/",
            "tidemark://x/y",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn expectations_compare_whole_names() {
        let found: Identity = "tidemark://agent/a/b".parse().unwrap();
        let expected = |c: &str, n: &str| Expected::Agent { cluster: c.parse().unwrap(), node: n.parse().unwrap() };
        assert!(expected("a", "b").check(&found).is_ok());
        assert!(expected("a", "c").check(&found).is_err());
        assert!(expected("c", "b").check(&found).is_err());
        assert!(Expected::Coordinator.check(&found).is_err());
    }
}
