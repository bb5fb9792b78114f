//! Records that a service has accepted the credentials of this process. If it refuses them later, they have expired or
//! were changed, and a run with new ones may succeed.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

/// True once a service has accepted the credentials. They come from the environment, so there is one set per process.
static ACCEPTED: AtomicBool = AtomicBool::new(false);

/// Returns true if a request with the credentials of this process has succeeded.
pub(super) fn were_accepted() -> bool {
    ACCEPTED.load(Ordering::Relaxed)
}

/// Creates HTTP clients that record accepted credentials.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(RecordingClient(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct RecordingClient(HttpClient);

#[async_trait]
impl HttpService for RecordingClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // A request that fetches credentials carries none yet.
        let has_credentials = request.headers().contains_key("authorization");
        let response = self.0.execute(request).await?;
        if has_credentials && response.status().is_success() {
            ACCEPTED.store(true, Ordering::Relaxed);
        }
        Ok(response)
    }
}
