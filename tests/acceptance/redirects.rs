//! The Gateway API's conformance tests for meshes: redirects and rewrites.

use anyhow::Result;

use crate::{case::get, gateway_api::route, world::World};

/// One rule for each path that redirects in this way.
fn redirects(ways: &[(&str, &str)]) -> String {
    let rules = ways.iter().map(|(path, way)| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {way}}}]\n"
        )
    });
    route(&rules.collect::<String>())
}

pub(crate) async fn mesh_http_route_redirect_host_and_status(world: &World) -> Result<()> {
    let ways = [
        ("/host", "{hostname: example.org}"),
        ("/both", "{hostname: example.org, statusCode: 301}"),
    ];
    world
        .applied(
            &redirects(&ways),
            &[
                get("echo:80", "/host")
                    .status(302)
                    .answered("location", "http://example.org/host"),
                get("echo:80", "/both")
                    .status(301)
                    .answered("location", "http://example.org/both"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_redirect_path(world: &World) -> Result<()> {
    let ways = [
        (
            "/original-prefix",
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement-prefix}}",
        ),
        (
            "/full",
            "{path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}}",
        ),
        (
            "/host",
            "{hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /other}}",
        ),
    ];
    world
        .applied(
            &redirects(&ways),
            &[
                get("echo:80", "/original-prefix/lemon")
                    .with("host", "echo")
                    .status(302)
                    .answered("location", "http://echo/replacement-prefix/lemon"),
                get("echo:80", "/full/path/original")
                    .with("host", "echo")
                    .status(302)
                    .answered("location", "http://echo/full-path-replacement"),
                get("echo:80", "/host/path")
                    .status(302)
                    .answered("location", "http://example.org/other/path"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_redirect_port(world: &World) -> Result<()> {
    let ways = [
        ("/port", "{port: 8083}"),
        ("/host", "{hostname: example.org, port: 8083}"),
        (
            "/all",
            "{hostname: example.org, port: 8083, statusCode: 301}",
        ),
    ];
    world
        .applied(
            &redirects(&ways),
            &[
                get("echo:80", "/port")
                    .with("host", "echo")
                    .status(302)
                    .answered("location", "http://echo:8083/port"),
                get("echo:80", "/host")
                    .status(302)
                    .answered("location", "http://example.org:8083/host"),
                get("echo:80", "/all")
                    .status(301)
                    .answered("location", "http://example.org:8083/all"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_scheme_redirect(world: &World) -> Result<()> {
    let ways = [
        ("/scheme", "{scheme: https}"),
        ("/host", "{scheme: https, hostname: example.org}"),
        (
            "/port",
            "{scheme: https, hostname: example.org, port: 8443}",
        ),
    ];
    world
        .applied(
            &redirects(&ways),
            &[
                get("echo:80", "/scheme")
                    .with("host", "echo")
                    .status(302)
                    .answered("location", "https://echo/scheme"),
                get("echo:80", "/host")
                    .status(302)
                    .answered("location", "https://example.org/host"),
                get("echo:80", "/port")
                    .status(302)
                    .answered("location", "https://example.org:8443/port"),
            ],
        )
        .await
}

pub(crate) async fn mesh_http_route_rewrite_path(world: &World) -> Result<()> {
    let rules = [
        (
            "/prefix/one",
            "{type: ReplacePrefixMatch, replacePrefixMatch: /one}",
        ),
        (
            "/strip-prefix",
            "{type: ReplacePrefixMatch, replacePrefixMatch: /}",
        ),
        (
            "/full/one",
            "{type: ReplaceFullPath, replaceFullPath: /one}",
        ),
    ]
    .map(|(path, way)| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{path: {way}}}}}]
    backendRefs: [{{name: echo-v1, port: 80}}]\n"
        )
    });
    world
        .applied(
            &route(&rules.concat()),
            &[
                get("echo:80", "/prefix/one/two").path("/one/two"),
                get("echo:80", "/strip-prefix/three").path("/three"),
                get("echo:80", "/strip-prefix").path("/"),
                get("echo:80", "/full/one/two?a=b").path("/one?a=b"),
            ],
        )
        .await
}

async fn redirected_with(world: &World, status: u16) -> Result<()> {
    let way = format!("{{hostname: example.org, statusCode: {status}}}");
    world
        .applied(
            &redirects(&[("/", &way)]),
            &[get("echo:80", "/path")
                .status(status)
                .answered("location", "http://example.org/path")],
        )
        .await
}

pub(crate) async fn mesh_http_route_303_redirect(world: &World) -> Result<()> {
    redirected_with(world, 303).await
}

pub(crate) async fn mesh_http_route_307_redirect(world: &World) -> Result<()> {
    redirected_with(world, 307).await
}

pub(crate) async fn mesh_http_route_308_redirect(world: &World) -> Result<()> {
    redirected_with(world, 308).await
}
