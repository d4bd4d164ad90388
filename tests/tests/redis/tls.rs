//! Servers that speak TLS alone, and ask their clients for certificates.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tidemark_coordinator::job::restore::RestoreRequest;
use tidemark_tests::fleet::{AgentSpec, EngineKind, Fleet, eventually, restore_of};
use tidemark_tests::redis::{Cluster, Flavor, Server, listening_by};

use super::contents::{Contents, compare, held_by, held_by_all};
use super::fenced::good;
use super::flow::{filling, spec};
use super::load::{Load, Wildness};
use super::replicas::forks;

/// An authority, with a certificate for the server and one for the agent.
struct Issued {
    dir: PathBuf,
}

impl Issued {
    fn by_one_authority(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("folder");
        let key = || KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = CertifiedIssuer::self_signed(params, key()).expect("authority");
        std::fs::write(dir.join("ca.crt"), authority.pem()).expect("file");
        for (name, hosts) in [("server", vec!["127.0.0.1".to_owned()]), ("agent", Vec::new())] {
            let own = key();
            // OpenSSL takes a certificate with its issuer's name for one that signed itself.
            let mut params = CertificateParams::new(hosts).expect("names");
            params.distinguished_name.push(DnType::CommonName, name);
            let cert = params.signed_by(&own, &authority).expect("certificate");
            std::fs::write(dir.join(format!("{name}.crt")), cert.pem()).expect("file");
            let key = dir.join(format!("{name}.key"));
            std::fs::write(&key, own.serialize_pem()).expect("file");
            std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("mode");
        }
        Self { dir: dir.to_owned() }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("text").to_owned()
    }

    fn server(&self) -> (u16, Server) {
        self.server_with(&[])
    }

    /// A node of a Cluster, whose bus and replication are over TLS too.
    fn node(&self) -> (u16, Server) {
        let bus = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--tls-cluster", "yes"];
        self.server_with(&[&bus[..], &["--tls-replication", "yes"]].concat())
    }

    fn server_with(&self, more: &[&str]) -> (u16, Server) {
        let [cert, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| self.file(name));
        let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let options = [&["--port", "0", "--tls-auth-clients", "yes"][..], &files, more].concat();
        listening_by(Flavor::Redis, "--tls-port", &options)
    }

    /// What stands in an agent's `[engine]`; `with` a certificate of its own or without.
    fn engine(&self, with: bool) -> String {
        let [ca, cert, key] = ["ca.crt", "agent.crt", "agent.key"].map(|name| self.file(name));
        let own = if with { format!(", cert = {cert:?}, key = {key:?}") } else { String::new() };
        format!("tls = {{ ca = {ca:?}{own} }}")
    }
}

fn agent(cluster: &str, port: u16, options: String) -> AgentSpec {
    let mut agent = spec(cluster, "n0", String::new());
    agent.engine = EngineKind::Redis(format!("127.0.0.1:{port}"), options);
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_tls_is_backed_up_under_load_and_restored() {
    let dir = tempfile::tempdir().expect("folder");
    let issued = Issued::by_one_authority(&dir.path().join("ours"));
    let ((port, source), (target_port, target)) = (issued.server(), issued.server());
    let _ = source.client().pipeline(&filling());
    let mut fleet = Fleet::start().await;
    fleet.start_agent(agent("source", port, issued.engine(true)));
    fleet.start_agent(agent("target", target_port, issued.engine(true)));
    let _ = (fleet.ready("source", 1).await, fleet.ready("target", 1).await);
    let load = Load::start(vec![source.client()], Wildness::Databases);
    let _ = good(fleet.backup("source").await);
    load.stop();
    // Of a server that stands still, and on which nothing expires soon, it is known what it held.
    let _ = source.client().run("FLUSHALL");
    let _ = source.client().pipeline(&filling());
    let wanted = held_by(&source);
    let backup = good(fleet.backup("source").await);
    assert_eq!(backup.item.records as usize, wanted.len());
    let _ = good(fleet.restore(&restore_of("source", "target")).await);
    compare("over TLS", &held_by(&target), &wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_certificate_or_with_another_authority_is_told_so() {
    let dir = tempfile::tempdir().expect("folder");
    let (ours, others) =
        (Issued::by_one_authority(&dir.path().join("ours")), Issued::by_one_authority(&dir.path().join("others")));
    let (port, _server) = ours.server();
    let mut fleet = Fleet::start().await;
    fleet.start_agent(agent("nothing", port, ours.engine(false)));
    fleet.start_agent(agent("others", port, others.engine(true)));
    fleet.start_agent(agent("plain", port, String::new()));
    for cluster in ["nothing", "others", "plain"] {
        let told = eventually("the agent's word", async || match fleet.backup(cluster).await {
            // Until it has connected nobody knows the cluster.
            Err(e) if e.report().contains("no node") => None,
            answer => Some(answer.map(|_| ()).expect_err("no backup").report()),
        });
        let told = told.await;
        println!("{cluster}: {told}");
        assert!(told.contains(&format!("127.0.0.1:{port}")), "{cluster}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_speaks_tls_alone_is_backed_up_from_a_replica_and_restored_beside_and_in_place() {
    let dir = tempfile::tempdir().expect("folder");
    let issued = Issued::by_one_authority(&dir.path().join("ours"));
    let mut source = Cluster::by_hand(vec![issued.node(), issued.node()]);
    source.follow(0, issued.node());
    let target = Cluster::by_hand(vec![issued.node()]);
    for n in 0..400 {
        let key = format!("key:{n}");
        let _ = source.owner(key.as_bytes()).client().run(&format!("SET {key} {n}"));
    }
    let mut fleet = Fleet::start().await;
    for (n, (port, _)) in source.nodes.iter().enumerate() {
        let mut agent = agent("source", *port, issued.engine(true));
        agent.node = format!("n{n}");
        fleet.start_agent(agent);
    }
    fleet.start_agent(agent("target", target.nodes[0].0, issued.engine(true)));
    let _ = (fleet.ready("source", 3).await, fleet.ready("target", 1).await);
    let held = || -> Contents { source.nodes[..2].iter().flat_map(|(_, server)| held_by(server)).collect() };
    let wanted = held();
    assert_eq!(wanted.len(), 400);
    let before = forks(&source.nodes[0].1);
    let _ = good(fleet.backup("source").await);
    assert_eq!(forks(&source.nodes[0].1), before, "the replica's stream was read");
    let _ = good(fleet.restore(&restore_of("source", "target")).await);
    compare("into another Cluster", &held_by_all(&target), &wanted);
    // In place the replica's clients are kept out, too, and all users come in again by TLS.
    let _ = source.owner(b"key:7").client().run("SET key:7 later");
    let request = RestoreRequest { in_place: true, ..restore_of("source", "source") };
    let _ = good(fleet.restore(&request).await);
    compare("in place", &held(), &wanted);
    eventually("the replica to have the same", async || {
        (held_by(&source.nodes[2].1) == held_by(&source.nodes[0].1)).then_some(())
    })
    .await;
}
