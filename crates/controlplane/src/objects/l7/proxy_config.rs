//! `networking.istio.io` ProxyConfig (Istio's API reference): how proxies are started.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Custom;
use crate::objects::security::Selector;

/// How proxies are started.
pub type ProxyConfig = Custom<ProxyConfigSpec>;

/// The body of a ProxyConfig.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfigSpec {
    /// The pods it is for; all of its namespace (or of the mesh) when absent.
    pub selector: Option<Selector>,
    /// Worker threads.
    pub concurrency: Option<u32>,
    /// Variables of the proxy.
    pub environment_variables: BTreeMap<String, String>,
    /// Which build of the proxy.
    pub image: Option<Value>,
}
