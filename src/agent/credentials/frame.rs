//! The single message of a unary gRPC call, as framed in the body of the request.

use bytes::{Buf as _, Bytes};
use prost::Message;

/// Decodes the message. Returns `None` if it is compressed, which kubelets do not do, or malformed.
pub(super) fn message<M: Message + Default>(mut body: Bytes) -> Option<M> {
    let is_compressed = body.try_get_u8().ok()? != 0;
    let length = usize::try_from(body.try_get_u32().ok()?).ok()?;
    if is_compressed || body.len() != length {
        return None;
    }
    M::decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::runtime::v1::{ImageSpec, PullImageRequest};

    #[test]
    fn one_whole_message_is_read_and_anything_else_is_ignored() {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image: "app:1".to_owned(),
            }),
            auth: None,
        };
        let encoded = request.encode_to_vec();
        let mut body = vec![0, 0, 0, 0, u8::try_from(encoded.len()).unwrap()];
        body.extend(&encoded);
        assert_eq!(
            message::<PullImageRequest>(body.clone().into()),
            Some(request)
        );
        let compressed = [&[1], &body[1..]].concat();
        let longer = [&body[..], &[0]].concat();
        for body in [
            &b""[..],
            &body[..4],
            &body[..7],
            &compressed,
            &longer,
            b"\0\0\0\0\x01\xff",
        ] {
            assert_eq!(
                message::<PullImageRequest>(Bytes::copy_from_slice(body)),
                None,
                "{body:?}"
            );
        }
    }
}
