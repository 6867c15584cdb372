//! Who calls must show a token.

use anyhow::{Result, ensure};
use http::StatusCode;

use super::{Document, document, session};
use crate::{mesh::Mesh, session::Answer};

const READERS: Document = document!(
    "RequestAuthentication",
    "readers.request-authentication.yaml"
);

macro_rules! token {
    ($file:literal) => {
        Some(include_str!(concat!(
            "../../../../manifests/demo/bookstore/tokens/",
            $file
        )))
    };
}

struct Case {
    name: &'static str,
    token: Option<&'static str>,
    status: StatusCode,
    body: &'static str,
}

const VALID: Case = Case {
    name: "a valid token",
    token: token!("valid.jwt"),
    status: StatusCode::OK,
    body: "",
};
const NONE: Case = Case {
    name: "none",
    token: None,
    status: StatusCode::FORBIDDEN,
    body: "RBAC: access denied",
};
const REFUSED: [Case; 3] = [
    NONE,
    Case {
        name: "an expired one",
        token: token!("expired.jwt"),
        status: StatusCode::UNAUTHORIZED,
        body: "Jwt is expired",
    },
    Case {
        name: "one of another issuer",
        token: token!("other-issuer.jwt"),
        status: StatusCode::UNAUTHORIZED,
        body: "Jwt issuer is not configured",
    },
];
const CALLS: usize = 10;

pub(in crate::checks) async fn check(mesh: &Mesh) -> Result<String> {
    let ask = |case: &'static Case| async move {
        let bearer = case.token.map(|token| format!("Bearer {}", token.trim()));
        let header = bearer.as_deref().map(|bearer| ("authorization", bearer));
        let mut session = session(mesh, "reviews").await?;
        let headers: Vec<(&str, &str)> = header.into_iter().collect();
        session.get("/", &headers).await
    };
    let after = READERS
        .apply(mesh, || async { NONE.expect(&ask(&NONE).await?) })
        .await?;
    for _ in 0..CALLS {
        let answer = ask(&VALID).await?;
        VALID.expect(&answer)?;
        let seen = answer.description()?.headers;
        let has_token = seen.iter().any(|(name, _)| name == "authorization");
        ensure!(!has_token, "the token is sent to the application");
        for case in &REFUSED {
            case.expect(&ask(case).await?)?;
        }
    }
    Ok(format!(
        "of {CALLS} calls each: a valid token 200, none 403, an expired one and one of another issuer 401; in force within {} ms",
        after.as_millis()
    ))
}

impl Case {
    fn expect(&self, answer: &Answer) -> Result<()> {
        let body = String::from_utf8_lossy(&answer.body);
        ensure!(
            answer.status == self.status && body.ends_with(self.body),
            "{}: {} {body:?}",
            self.name,
            answer.status
        );
        Ok(())
    }
}
