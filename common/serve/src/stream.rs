//! Answers as server-sent events, as they are made.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use uc_infer::request::Progress;

use crate::error::ApiError;
use crate::running::Running;
use crate::state::State;

/// Events that are made before the client has read those before. A sequence goes on while a client is slow; what it gives is
/// limited by its tokens.
const AHEAD: usize = 16;
/// Time after which a comment is sent if there is nothing else, so that nothing on the way closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// From what happens to the objects of a stream.
pub(crate) trait Chunks: Send + 'static {
    /// The objects that follow from what happened to a sequence.
    fn progress(&mut self, index: usize, progress: Progress) -> Vec<Value>;

    /// The objects at the end.
    fn end(&mut self) -> Vec<Value>;
}

/// Starts a stream. An error before anything has happened is an answer with its status; a later one is an event.
///
/// # Errors
/// Those of [`Running::next`].
pub(crate) async fn stream(
    state: &State,
    mut running: Running,
    mut chunks: impl Chunks,
) -> Result<Response, ApiError> {
    let first = running.next().await?;
    let (sender, receiver) = channel(AHEAD);
    let log_prompts = state.settings.log_prompts;
    tokio::spawn(async move {
        let sent = send(&sender, running, &mut chunks, first, log_prompts);
        tokio::select! {
            () = sent => {}
            // The client has gone away: what runs is cancelled.
            () = sender.closed() => {}
        }
    });
    let events = Sse::new(Events(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = events.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Sends everything. Returns early if the client has gone away.
async fn send(
    sender: &Sender<Event>,
    mut running: Running,
    chunks: &mut impl Chunks,
    first: Option<(usize, Progress)>,
    log_prompts: bool,
) {
    let mut next: Result<_, ApiError> = Ok(first);
    loop {
        let (values, has_ended) = match next {
            Ok(Some((index, progress))) => (chunks.progress(index, progress), false),
            Ok(None) => (chunks.end(), true),
            Err(error) => {
                let value = serde_json::to_value(error.body()).unwrap_or_default();
                (vec![value], true)
            }
        };
        for value in values {
            if log_prompts {
                tracing::info!(%value, "sent");
            }
            let event = Event::default().data(value.to_string());
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if has_ended {
            break;
        }
        next = running.next().await;
    }
    // The client may have gone away.
    let _ = sender.send(Event::default().data("[DONE]")).await;
}

/// The receiver as a stream.
struct Events(Receiver<Event>);

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
