//! EnvoyFilters at work in real Envoys: what they add runs, what they remove is gone, and what would break is left out.

use serde_json::{Value, json};

use super::harness::*;

const WEB: &str = "web.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

/// An EnvoyFilter for workloads with the label `app`; `patches` are lines of a list, indented by two spaces.
fn filter(name: &str, app: &str, patches: &str) -> String {
    let spec =
        format!("  workloadSelector: {{labels: {{app: {app}}}}}\n  configPatches:\n{patches}");
    config("EnvoyFilter", name, &spec)
}

/// A Lua filter that adds a response header, in the form that users of Istio 1.4 wrote.
fn lua(context: &str, header: &str) -> String {
    format!(
        "  - applyTo: HTTP_FILTER
    match: {{context: {context}, listener: {{filterChain: {{filter: {{name: envoy.http_connection_manager, subFilter: {{name: envoy.router}}}}}}}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.lua
        config:
          inlineCode: |
            function envoy_on_response(handle)
              handle:headers():add(\"x-lua\", \"{header}\")
            end
"
    )
}

fn request() -> Request {
    Request::get("/").host("web")
}

async fn dump(envoy: &Envoy) -> Value {
    serde_json::from_str(&envoy.admin("/config_dump").await).unwrap()
}

/// The cluster of a name as Envoy has it.
async fn cluster(envoy: &Envoy, name: &str) -> Value {
    let dump = dump(envoy).await;
    let all = dump["configs"].as_array().unwrap().iter();
    let active = all.filter_map(|c| c["dynamic_active_clusters"].as_array());
    let mut clusters = active.flatten().map(|c| c["cluster"].clone());
    clusters.find(|c| c["name"] == name).unwrap_or_default()
}

/// What Pilot says it left out: field and reason.
async fn rejections(pilot: &Pilot) -> Vec<(String, String)> {
    let status = pilot.json("/debug/push_status").await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = status["Rejections"].as_array().unwrap().iter();
    list.map(|r| (text(&r["field"]), text(&r["reason"])))
        .collect()
}

#[test]
fn a_lua_filter_runs_on_the_way_out_and_on_the_way_in() {
    isolated(async |net| {
        let (server, client) = (net.pod(), net.pod());
        let _app = Backend::http("app", server.listen("127.0.0.1:8080"));
        let endpoint = format!("{} 8080 app: web", server.ip);
        let pilot = net
            .pilot()
            .start(|folder| {
                write(
                    folder,
                    "web",
                    &service("web.shop", "10.96.0.1", "80 http HTTP", &[endpoint]),
                );
                write(
                    folder,
                    "in",
                    &filter("in.shop", "web", &lua("SIDECAR_INBOUND", "in")),
                );
            })
            .await;
        let server = Proxy::sidecar("web-0.shop").start_in(server, &pilot).await;
        let client = Proxy::sidecar("client-0.shop")
            .start_in(client, &pilot)
            .await;
        let header = async || client.ask(VIP, request()).await.unwrap().header("x-lua");
        assert_eq!(header().await, "in");

        // Added to a proxy that runs, changed, and taken away again.
        pilot.write(
            "out",
            &filter("out.shop", "client", &lua("SIDECAR_OUTBOUND", "out")),
        );
        pilot.settle(&client).await;
        assert_eq!(header().await, "in,out");
        pilot.write(
            "out",
            &filter("out.shop", "client", &lua("SIDECAR_OUTBOUND", "changed")),
        );
        pilot.settle(&client).await;
        assert_eq!(header().await, "in,changed");
        pilot.remove("out");
        pilot.settle(&client).await;
        assert_eq!(header().await, "in");

        // Routes that are written into inbound listeners are patched as well.
        pilot.write(
            "in",
            &filter(
                "in.shop",
                "web",
                "  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_INBOUND, routeConfiguration: {portNumber: 80, vhost: {route: {name: default}}}}
    patch: {operation: INSERT_BEFORE, value: {match: {path: /ping}, direct_response: {status: 200, body: {inline_string: pong}}}}
",
            ),
        );
        pilot.settle(&server).await;
        // On a new connection: the client's sidecar keeps those that it has to the listener as it was.
        let inbound = (server.ip(), 8080);
        let answer = ask(inbound, Request::get("/ping").host("web"))
            .await
            .unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "pong"));
        assert_eq!(client.ask(VIP, request()).await.unwrap().body, "app");
        assert_eq!(rejections(&pilot).await, []);
        server.assert_nothing_rejected().await;
        client.assert_nothing_rejected().await;
    });
}

#[test]
fn patches_change_those_proxies_that_they_select() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pilot = net
            .pilot()
            .start(|folder| {
                write(folder, "web", &service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]));
                let abort = "  http: [{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: web.shop.svc.cluster.local}}]}]";
                write(folder, "abort", &virtual_service("web.shop", WEB, abort));
            })
            .await;
        let patched = Proxy::sidecar("patched-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let other = Proxy::sidecar("other-0.shop")
            .bound()
            .sotw()
            .start(net, &pilot)
            .await;
        let status = async |envoy: &Envoy| envoy.ask(VIP, request()).await.unwrap().status;
        assert_eq!((status(&patched).await, status(&other).await), (418, 418));

        let name = format!("outbound|80||{WEB}");
        let updates = async |envoy: &Envoy| {
            let (cds, lds) = (
                envoy.stat("cluster_manager.cds.update_attempt").await,
                envoy.stat("listener_manager.lds.update_attempt").await,
            );
            (cds, lds)
        };
        pilot.write(
            "patch",
            &filter(
                "patch.shop",
                "patched",
                "  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_OUTBOUND, listener: {portNumber: 80, filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: envoy.fault}}}}}
    patch: {operation: REMOVE}
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND, cluster: {service: web.shop.svc.cluster.local, portNumber: 80}}
    patch: {operation: MERGE, value: {connect_timeout: 7.5s}}
",
            ),
        );
        pilot.settle(&patched).await;
        pilot.settle(&other).await;
        // Without the fault filter nobody aborts.
        assert_eq!((status(&patched).await, status(&other).await), (200, 418));
        assert_eq!(cluster(&patched, &name).await["connect_timeout"], "7.500s");
        assert_eq!(cluster(&other, &name).await["connect_timeout"], "1s");

        // What concerns the one does not bother the other.
        let before = updates(&other).await;
        pilot.write("patch", &filter("patch.shop", "patched", "  - {applyTo: CLUSTER, match: {cluster: {name: BlackHoleCluster}}, patch: {operation: MERGE, value: {connect_timeout: 3s}}}\n"));
        until("the patch is another one", async || {
            (cluster(&patched, "BlackHoleCluster").await["connect_timeout"] == "3s").then_some(())
        })
        .await;
        assert_eq!(status(&patched).await, 418);
        assert_eq!(cluster(&patched, &name).await["connect_timeout"], "1s");
        assert_eq!(updates(&other).await, before);
        patched.assert_nothing_rejected().await;
        other.assert_nothing_rejected().await;
    });
}

#[test]
fn a_broken_patch_is_reported_and_traffic_goes_on() {
    isolated(async |net| {
        let web = net.http("web").await;
        let pilot = net
            .pilot()
            .start(|folder| {
                write(
                    folder,
                    "web",
                    &service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]),
                );
            })
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .start(net, &pilot)
            .await;
        let header = async || {
            let answer = client.ask(VIP, request()).await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "web"));
            answer.header("x-lua")
        };
        let router = "{filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: envoy.router}}}}";
        let broken = format!(
            "  - {{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{conect_timeout: 1s}}}}}}
  - {{applyTo: HTTP_FILTER, match: {{listener: {router}}}, patch: {{operation: REMOVE}}}}
  - {{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{connect_timeout: 0s}}}}}}
  - {{applyTo: LISTENER, match: {{listener: {{name: virtualOutbound}}}}, patch: {{operation: MERGE, value: {{name: mine}}}}}}
"
        );
        pilot.write(
            "bad",
            &filter(
                "bad.shop",
                "client",
                &format!("{broken}{}", lua("SIDECAR_OUTBOUND", "good")),
            ),
        );
        pilot.settle(&client).await;
        // The good patch beside the broken ones works.
        assert_eq!(header().await, "good");
        client.assert_nothing_rejected().await;
        let found = rejections(&pilot).await;
        for (field, reason) in [
            (
                "configPatches[0].patch.value",
                "envoy.config.cluster.v3.Cluster has no field \"conect_timeout\"; accepted: connect_timeout",
            ),
            (
                "configPatches[1]",
                "http_filters: ends with envoy.filters.http.fault",
            ),
            (
                "configPatches[2]",
                "connect_timeout: is 0s; accepted: more than 0s",
            ),
            (
                "configPatches[3]",
                "listener virtualOutbound: the patch changes its name to \"mine\"",
            ),
        ] {
            let told = found.iter().any(|(f, r)| f == field && r.contains(reason));
            assert!(told, "{field}: {reason}: {found:#?}");
        }

        // Whether a script compiles only Envoy knows: it keeps what it had and says so.
        let syntax = lua("SIDECAR_OUTBOUND", "bad").replace("function", "funktion");
        pilot.write("bad", &filter("bad.shop", "client", &syntax));
        let error = until("the refusal is seen", async || {
            let synced = pilot.json("/debug/syncz").await;
            synced[0]["listener_error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(error.contains("script load error"), "{error}");
        assert_eq!(header().await, "good");
        assert!(client.stat("listener_manager.lds.update_rejected").await > 0);

        // Mended, everything is as it should be, and nothing is told of what was.
        pilot.write(
            "bad",
            &filter("bad.shop", "client", &lua("SIDECAR_OUTBOUND", "mended")),
        );
        pilot.settle(&client).await;
        assert_eq!(header().await, "mended");
        assert_eq!(rejections(&pilot).await, []);
        let synced = pilot.json("/debug/syncz").await;
        assert_eq!(synced[0]["listener_error"], json!(null), "{synced}");
    });
}
