//! The whole way through a real S3 server: Ceph's RADOS Gateway, as Debian ships it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tidemark_coordinator::job::JobInfo;
use tidemark_coordinator::job::collect::{CollectReport, CollectRequest};
use tidemark_coordinator::kv::load;
use tidemark_proto::Timestamp;
use tidemark_tests::fleet::{CoordinatorSpec, Fleet, binary, load_options, records_at, restore_of};
use tokio_util::sync::CancellationToken;

/// A running gateway; ended when dropped.
struct Gateway {
    dir: tempfile::TempDir,
    port: u16,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ceph/gateway")
}

fn run(command: &mut Command) -> Output {
    let done = command.output().expect("a process");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    done
}

impl Gateway {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        // Held all at once, so that they differ.
        let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = held.iter().map(|l| l.local_addr().expect("address").port()).collect();
        drop(held);
        let mut up = Command::new(script());
        let _ = up.arg("up").arg(dir.path()).args(ports.iter().map(u16::to_string));
        let _ = run(&mut up);
        Self { dir, port: ports[2] }
    }

    fn options(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [("aws_endpoint", endpoint.as_str()), ("aws_allow_http", "true"), ("aws_region", "us-east-1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// Credentials by environment, as operators should give them.
    fn env(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join("credentials")).expect("credentials");
        let (access, secret) = text.trim().split_once('\n').expect("two lines");
        vec![("AWS_ACCESS_KEY_ID".into(), access.into()), ("AWS_SECRET_ACCESS_KEY".into(), secret.into())]
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("down").arg(self.dir.path()).status();
    }
}

async fn collect(fleet: &Fleet) -> CollectReport {
    let jobs: Vec<JobInfo> =
        fleet.api().post("repository/collect", &CollectRequest::default()).await.expect("a collection");
    serde_json::from_value(fleet.api().job_end(&jobs[0]).await.expect("its end")).expect("a report")
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_restore_and_collection_on_a_real_s3_server() {
    let gateway = tokio::task::block_in_place(Gateway::start);
    let url = "s3://backups/fleet".to_owned();
    let spec =
        CoordinatorSpec { url: url.clone(), options: gateway.options(), env: gateway.env(), ..Default::default() };
    let mut fleet = Fleet::start_with(spec).await;
    fleet.add_cluster("orders", 3).await;
    let router = fleet.router("orders", 3).await;
    let _ = load(&router, &load_options(1, 5000), CancellationToken::new()).await.expect("load");
    let full = fleet.backup("orders").await.expect("a full backup");
    let _ = load(&router, &load_options(2, 200), CancellationToken::new()).await.expect("load");
    let delta = fleet.backup("orders").await.expect("a second backup");
    assert!(delta.parent == full.root && delta.delta_parts > 0, "{delta:?}");
    assert!(delta.item.new_bytes * 4 < full.item.new_bytes, "{delta:?}");
    let expected = records_at(&router, Some(Timestamp(delta.item.cut))).await;
    let _ = fleet.verify("orders", &delta.item.id).await.expect("verified");
    assert!(fleet.check_repository().await.iter().all(Result::is_ok));
    // The first one goes; what the second builds on stays.
    let _: serde_json::Value =
        fleet.api().delete(&format!("clusters/orders/backups/{}", full.item.id)).await.expect("deleted");
    let collected = collect(&fleet).await;
    assert!(collected.manifest_objects > 0 && collected.kept_bytes > 0, "{collected:?}");
    fleet.add_cluster("copy", 2).await;
    let _ = fleet.restore(&restore_of("orders", "copy")).await.expect("restored");
    assert_eq!(records_at(&fleet.router("copy", 2).await, None).await, expected);
    // Straight from the bucket, with nothing but the key.
    let mut direct = Command::new(binary("tidemark"));
    let _ = direct
        .args(["repo", "backups", "--repository", &url, "--cluster", "orders", "--key-file"])
        .arg(fleet.dir().join("master.key"));
    let _ = direct.args(gateway.options().iter().map(|(name, value)| format!("--option={name}={value}")));
    let listed = tokio::task::block_in_place(|| run(direct.envs(gateway.env())));
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&delta.item.id[..8]), "{listed:?}");
    // After everything is deleted nothing but history is left.
    let _: serde_json::Value =
        fleet.api().delete(&format!("clusters/orders/backups/{}", delta.item.id)).await.expect("deleted");
    assert_eq!(collect(&fleet).await.kept_bytes, 0);
}
