//! The signing services `istio.v1.auth` of Citadel, generated from `proto/`.

pub use generated::istio::v1::auth;

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::auth;

    #[test]
    fn messages_on_the_wire() {
        let request = auth::IstioCertificateRequest {
            csr: "c".to_owned(),
            validity_duration: 300,
            ..Default::default()
        };
        assert_eq!(request.encode_to_vec(), [0x0a, 1, b'c', 0x18, 0xac, 0x02]);
        let response = auth::CsrResponse {
            is_approved: true,
            signed_cert: vec![1],
            cert_chain: vec![2],
            ..Default::default()
        };
        assert_eq!(response.encode_to_vec(), [0x08, 1, 0x1a, 1, 1, 0x22, 1, 2]);
    }
}
