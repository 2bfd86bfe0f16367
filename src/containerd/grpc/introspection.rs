//! Calls for containerd's plugins and version.

use containerd_client::services::v1 as api;

use super::{Grpc, MAX_MESSAGE, failed};
use crate::containerd::{ListedPlugin, Result, Snapshotter};

pub(super) async fn snapshotters(grpc: &Grpc) -> Result<Vec<Snapshotter>> {
    let request = grpc.ask(api::PluginsRequest {
        filters: vec!["type==io.containerd.snapshotter.v1".to_owned()],
    });
    let reply = api::introspection_client::IntrospectionClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .plugins(request)
        .await;
    let reply = reply.map_err(failed("list", "snapshotters"))?.into_inner();
    Ok(reply.plugins.into_iter().map(snapshotter).collect())
}

pub(super) async fn plugins(grpc: &Grpc) -> Result<Vec<ListedPlugin>> {
    let request = grpc.ask(api::PluginsRequest { filters: vec![] });
    let reply = api::introspection_client::IntrospectionClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .plugins(request)
        .await;
    let reply = reply.map_err(failed("list", "plugins"))?.into_inner();
    let plugin = |plugin: api::Plugin| ListedPlugin {
        uri: format!("{}.{}", plugin.r#type, plugin.id),
        init_error: plugin.init_err.map(|status| status.message),
    };
    Ok(reply.plugins.into_iter().map(plugin).collect())
}

pub(super) async fn version(grpc: &Grpc) -> Result<String> {
    let reply = api::version_client::VersionClient::new(grpc.channel.clone())
        .version(grpc.ask(()))
        .await;
    let reply = reply.map_err(failed("ask", "version"))?.into_inner();
    Ok(reply.version)
}

fn snapshotter(plugin: api::Plugin) -> Snapshotter {
    Snapshotter {
        name: plugin.id,
        capabilities: plugin.capabilities,
        exports: plugin.exports.into_iter().collect(),
        init_error: plugin.init_err.map(|status| status.message),
    }
}
