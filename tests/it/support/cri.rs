//! CRI calls as bytes, so that a proxy's output can be compared byte by byte.

use std::path::Path;

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// A codec that passes messages through undecoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw;

/// A kubelet's connection to an image service.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet(Channel);

impl Kubelet {
    pub(crate) fn new(socket: &Path) -> Self {
        Self(
            Endpoint::from_shared(format!("unix://{}", socket.display()))
                .unwrap()
                .connect_lazy(),
        )
    }

    /// Calls a method of the image service.
    pub(crate) async fn call(
        &self,
        method: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.call_service("ImageService", method, request).await
    }

    /// Calls a method of the runtime service.
    pub(crate) async fn call_runtime(
        &self,
        method: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        self.call_service("RuntimeService", method, request).await
    }

    async fn call_service(
        &self,
        service: &str,
        method: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let mut client = Grpc::new(self.0.clone()).max_decoding_message_size(64 << 20);
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.{service}/{method}").parse().unwrap();
        client.unary(request, path, Raw).await
    }
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
