//! TLS towards services ([`client`]) and at the servers of gateways ([`server`]): Envoy's contexts.
//!
//! Certificates and CAs always come as secrets, whatever the user named (files, a credential, the mesh's own); see
//! [`secret`] for why. This module decides which secret and from whom; both ends share it.
//!
//! | What | Secret | From |
//! |---|---|---|
//! | files | `file-cert:CHAIN~KEY`, `file-root:CA` | pilot-agent (`AGENT_SDS`), else Pilot over ADS |
//! | `credentialName` | `NAME`, `NAME-cacert` | pilot-agent, else whoever serves the gateway's socket |
//! | the workload's own, `mesh.sdsUdsPath` set | `default`, `ROOTCA` | that socket, with the workload's token |
//! | the workload's own, otherwise | as files | at the paths of its metadata, or under /etc/certs |
//!
//! pilot-agent is reached through a cluster of the bootstrap: Envoy's own client comes back within seconds after an
//! outage of any length (Google's client library, tried beside it, waited longer than the outage itself, and runs seven threads of
//! its own). The library is used only where nobody else can do it: it reads the token anew for every call.

mod client;
mod secret;
mod server;

use envoy_types::pb::envoy::{
    config::core::v3::grpc_service::{
        EnvoyGrpc, GoogleGrpc, TargetSpecifier,
        google_grpc::{
            CallCredentials, ChannelArgs, ChannelCredentials, GoogleLocalCredentials,
            call_credentials::{
                CredentialSpecifier, MetadataCredentialsFromPlugin,
                metadata_credentials_from_plugin::ConfigType,
            },
            channel_args::{self, value::ValueSpecifier},
            channel_credentials::CredentialSpecifier as ChannelCredential,
        },
    },
    config::grpc_credential::v3::FileBasedMetadataConfig,
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
        subject_alt_name_matcher::SanType,
    },
};
use prost::{Message, Name};

use crate::{
    compile::KeyPair,
    envoy::{self, core},
    model::CertificateFiles,
    names,
    snapshot::Scope,
};

pub(super) use client::client;
pub use secret::secret;
pub(super) use server::{server, unavailable};

const FILE_BASED_METADATA: &str = "envoy.grpc_credentials.file_based_metadata";

/// What a peer's certificate must be.
#[derive(Debug, Default)]
struct Verify<'a> {
    /// CAs.
    ca: Option<SdsSecretConfig>,
    /// Names, one of which it must bear.
    names: &'a [String],
    /// Pins of its public key.
    spki: &'a [String],
    /// Pins of itself.
    hashes: &'a [String],
}

/// The part of a context that clients and servers have in common.
fn common(own: Option<SdsSecretConfig>, verify: Verify<'_>, alpn: &[&str]) -> CommonTlsContext {
    let Verify {
        ca,
        names,
        spki,
        hashes,
    } = verify;
    let fixed = CertificateValidationContext {
        // Envoy refuses names without a CA: such a certificate may bear any name.
        match_typed_subject_alt_names: ca.iter().flat_map(|_| names).map(|n| san(n)).collect(),
        verify_certificate_spki: spki.to_vec(),
        verify_certificate_hash: hashes.to_vec(),
        ..Default::default()
    };
    let is_empty = fixed == CertificateValidationContext::default();
    let validation = match ca {
        Some(ca) if is_empty => Some(ValidationContextType::ValidationContextSdsSecretConfig(ca)),
        Some(ca) => Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(fixed),
                validation_context_sds_secret_config: Some(ca),
                ..Default::default()
            },
        )),
        None if is_empty => None,
        None => Some(ValidationContextType::ValidationContext(fixed)),
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: own.into_iter().collect(),
        alpn_protocols: alpn.iter().map(|s| (*s).to_owned()).collect(),
        validation_context_type: validation,
        ..Default::default()
    }
}

/// A name as Istio's users write it: a URI, an IP address, or a DNS name.
fn san(name: &str) -> SubjectAltNameMatcher {
    let san_type = if name.contains("://") {
        SanType::Uri
    } else if name.parse::<std::net::IpAddr>().is_ok() {
        SanType::IpAddress
    } else if name.contains('@') {
        SanType::Email
    } else {
        SanType::Dns
    };
    SubjectAltNameMatcher {
        san_type: san_type.into(),
        matcher: Some(envoy::exact(name)),
        ..Default::default()
    }
}

/// The transport socket around a context.
fn socket<M: Message + Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(envoy::any(
            context,
        ))),
    }
}

/// Certificate and key in files.
fn pair(scope: &Scope, files: &KeyPair) -> SdsSecretConfig {
    of_files(scope, secret::pair_name(&files.chain, &files.key))
}

/// CAs in a file.
fn root(scope: &Scope, path: &str) -> SdsSecretConfig {
    of_files(scope, secret::root_name(path))
}

fn of_files(scope: &Scope, name: String) -> SdsSecretConfig {
    let source = if scope.key().certificates.agent {
        agent()
    } else {
        envoy::ads(scope.settings().options.initial_fetch_timeout)
    };
    SdsSecretConfig {
        name,
        sds_config: Some(source),
    }
}

/// The workload's own certificate and the mesh's roots.
fn workload(scope: &Scope, files: &CertificateFiles) -> (SdsSecretConfig, SdsSecretConfig) {
    let socket = &scope.settings().sds_uds_path;
    if socket.is_empty() {
        let own = secret::pair_name(&files.chain, &files.key);
        return (of_files(scope, own), root(scope, &files.root));
    }
    let from_socket = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(google(socket, Some(&scope.key().certificates.token))),
    };
    (
        from_socket(names::WORKLOAD_SECRET),
        from_socket(names::ROOT_SECRET),
    )
}

/// A secret of a gateway's user.
fn credential(scope: &Scope, name: String) -> SdsSecretConfig {
    let source = if scope.key().certificates.agent {
        agent()
    } else {
        google(names::GATEWAY_SDS_SOCKET, None)
    };
    SdsSecretConfig {
        name,
        sds_config: Some(source),
    }
}

/// pilot-agent. By delta, because only so can it say at once that a secret does not exist.
fn agent() -> core::ConfigSource {
    use core::api_config_source::ApiType;
    let grpc = core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: names::SDS_CLUSTER.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    grpc_source(ApiType::DeltaGrpc, grpc)
}

/// Secret discovery at a socket, shown the token in a file if it wants one. One secret per stream, as Istio 1.4's node agent
/// has it.
fn google(socket: &str, token: Option<&str>) -> core::ConfigSource {
    use core::api_config_source::ApiType;
    let mut client = GoogleGrpc {
        target_uri: socket.to_owned(),
        stat_prefix: "sdsstat".to_owned(),
        channel_args: Some(channel_args()),
        channel_credentials: Some(ChannelCredentials {
            credential_specifier: Some(ChannelCredential::LocalCredentials(
                GoogleLocalCredentials::default(),
            )),
        }),
        ..Default::default()
    };
    if let Some(path) = token {
        let config = FileBasedMetadataConfig {
            secret_data: Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
                ..Default::default()
            }),
            header_key: "istio_sds_credentials_header-bin".to_owned(),
            ..Default::default()
        };
        client.credentials_factory_name = FILE_BASED_METADATA.to_owned();
        client.call_credentials = vec![CallCredentials {
            credential_specifier: Some(CredentialSpecifier::FromPlugin(
                MetadataCredentialsFromPlugin {
                    name: FILE_BASED_METADATA.to_owned(),
                    config_type: Some(ConfigType::TypedConfig(envoy::any(&config))),
                },
            )),
        }];
    }
    let grpc = core::GrpcService {
        target_specifier: Some(TargetSpecifier::GoogleGrpc(client)),
        ..Default::default()
    };
    grpc_source(ApiType::Grpc, grpc)
}

/// Two things to change of the library's ways: for a Unix socket it sends the escaped path as authority, which servers that
/// check it refuse (those in Rust do), and it waits up to two minutes before it connects again.
fn channel_args() -> ChannelArgs {
    let value = |specifier| channel_args::Value {
        value_specifier: Some(specifier),
    };
    let authority = ValueSpecifier::StringValue("localhost".to_owned());
    let milliseconds = ValueSpecifier::IntValue(5000);
    ChannelArgs {
        args: envoy::stable_map([
            ("grpc.default_authority".to_owned(), value(authority)),
            (
                "grpc.max_reconnect_backoff_ms".to_owned(),
                value(milliseconds),
            ),
        ]),
    }
}

fn grpc_source(
    api: core::api_config_source::ApiType,
    grpc: core::GrpcService,
) -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(
            core::ApiConfigSource {
                api_type: api.into(),
                transport_api_version: core::ApiVersion::V3.into(),
                set_node_on_first_message_only: true,
                grpc_services: vec![grpc],
                ..Default::default()
            },
        )),
        resource_api_version: core::ApiVersion::V3.into(),
        ..Default::default()
    }
}
