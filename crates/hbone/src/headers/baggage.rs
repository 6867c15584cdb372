//! `baggage` (W3C): what the source, and in the response the destination, says of itself.

use leyline_types::Str;

use super::{HeaderError, text};

/// 8192 bytes are what W3C asks every implementation to carry.
const MAX_LENGTH: usize = 8192;
/// 180 members, likewise.
const MAX_MEMBERS: usize = 180;

/// The kinds of workload that Istio names in baggage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment.
    #[default]
    Deployment,
    /// A pod of its own.
    Pod,
    /// A Job.
    Job,
    /// A CronJob.
    CronJob,
}

impl WorkloadKind {
    const ALL: [Self; 4] = [Self::Deployment, Self::Pod, Self::Job, Self::CronJob];

    fn member(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
            Self::CronJob => "k8s.cronjob.name",
        }
    }
}

/// Members of baggage; empty ones are neither sent nor told from absent ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Baggage {
    /// Cluster.
    pub cluster: Str,
    /// Namespace.
    pub namespace: Str,
    /// What the workload is.
    pub kind: WorkloadKind,
    /// Its name.
    pub workload: Str,
    /// Canonical service.
    pub service: Str,
    /// Canonical revision.
    pub revision: Str,
    /// Region.
    pub region: Str,
    /// Zone.
    pub zone: Str,
}

impl Baggage {
    /// The header value.
    pub fn encode(&self) -> String {
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (self.kind.member(), &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut header = String::with_capacity(192);
        for (name, value) in members {
            if value.is_empty() {
                continue;
            }
            if !header.is_empty() {
                header.push(',');
            }
            header.push_str(name);
            header.push('=');
            escape(value.as_str(), &mut header);
        }
        header
    }

    /// Reads a header value. Unknown members and properties are ignored.
    ///
    /// # Errors
    /// When it is not of the form that W3C says, or repeats a member.
    pub fn parse(value: &[u8]) -> Result<Self, HeaderError> {
        let mut baggage = Self::default();
        let text = text(value, MAX_LENGTH)?;
        if text.trim_matches(WHITESPACE).is_empty() {
            return Ok(baggage);
        }
        for (index, member) in text.split(',').enumerate() {
            if index >= MAX_MEMBERS {
                return Err(HeaderError::TooLong);
            }
            let pair = member.split_once(';').map_or(member, |(pair, _)| pair);
            let (name, value) = pair.split_once('=').ok_or(HeaderError::Malformed)?;
            let (name, value) = (
                name.trim_matches(WHITESPACE),
                value.trim_matches(WHITESPACE),
            );
            if name.is_empty() {
                return Err(HeaderError::Malformed);
            }
            if let Some(field) = baggage.field(name) {
                if !field.is_empty() {
                    return Err(HeaderError::Repeated);
                }
                *field = unescape(value)?.into();
            }
        }
        Ok(baggage)
    }

    /// Where a member is kept.
    fn field(&mut self, name: &str) -> Option<&mut Str> {
        if let Some(kind) = WorkloadKind::ALL.into_iter().find(|k| k.member() == name) {
            if self.workload.is_empty() {
                self.kind = kind;
            }
            return Some(&mut self.workload);
        }
        match name {
            "k8s.cluster.name" => Some(&mut self.cluster),
            "k8s.namespace.name" => Some(&mut self.namespace),
            "service.name" => Some(&mut self.service),
            "service.version" => Some(&mut self.revision),
            "cloud.region" => Some(&mut self.region),
            "cloud.availability_zone" => Some(&mut self.zone),
            _ => None,
        }
    }
}

const WHITESPACE: [char; 2] = [' ', '\t'];

/// `baggage-octet` of the standard, without the percent sign that starts an escape.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

fn escape(value: &str, out: &mut String) {
    const HEX: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    for byte in value.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or('0');
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

fn unescape(value: &str) -> Result<String, HeaderError> {
    let mut bytes = value.bytes();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || {
                let digit = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(digit).ok()
            };
            match (digit(), digit()) {
                (Some(high), Some(low)) => out.push(high << 4 | low),
                (None | Some(_), None) | (None, Some(_)) => return Err(HeaderError::Malformed),
            }
        } else if is_plain(byte) {
            out.push(byte);
        } else {
            return Err(HeaderError::Character);
        }
    }
    match String::from_utf8(out) {
        // An escaped control character would forge log lines.
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        Ok(_) | Err(_) => Err(HeaderError::Character),
    }
}
