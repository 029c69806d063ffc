//! What is answered to a request.
//!
//! Refuses everything but reading: GET and HEAD, three paths, bodies unread.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY};
use hyper::{Method, Request, Response, StatusCode};

use super::board::{Board, Complaint};
use crate::sink::metrics;

const TEXT: &str = "text/plain; charset=utf-8";

/// The answer to a request. Where it is a body, it is whole: no scrape sees half of a state.
pub(super) fn answer<B>(board: &Board, request: &Request<B>) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut accept = String::new();
            for value in request.headers().get_all(ACCEPT) {
                accept.push_str(value.to_str().unwrap_or_default());
                accept.push(',');
            }
            let format = metrics::negotiate(Some(&accept));
            let body = board.metrics(format);
            let mut whole = response(StatusCode::OK, format.content_type(), body);
            whole.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
            whole
        }
        "/healthz" => state(board.health()),
        "/readyz" => state(board.readiness()),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn state(state: Result<(), Complaint>) -> Response<Full<Bytes>> {
    match state {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    response(status, TEXT, body.to_owned())
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
