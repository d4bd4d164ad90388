//! What scratch servers have, and what is left in them; logs that are not as they should be.

use super::*;

#[test]
fn databases_that_no_server_has_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let base = made(&["0 SET a x", "300 SET a y"], dir.path());
    assert_eq!(names(&base), ["0 a", "300 a"]);
    let after = |lines: &[&str]| names(&fold(&base, Log::default().runs(lines), dir.path()));
    // Its number stands in the command alone, in what the command names, in the base alone, or in a script.
    assert_eq!(after(&["16 SET b x"]), ["0 a", "16 b", "300 a"]);
    assert_eq!(after(&["0 MOVE a 20"]), ["20 a", "300 a"]);
    assert_eq!(after(&["0 COPY a b DB 17"]), ["0 a", "17 b", "300 a"]);
    assert_eq!(after(&["0 SWAPDB 0 19"]), ["19 a", "300 a"]);
    let script = "0 EVAL redis.call('select',20)redis.call('set',KEYS[1],'v') 1 k";
    assert_eq!(after(&[script]), ["0 a", "20 k", "300 a"]);
}

#[test]
fn a_server_that_waits_begins_anew() {
    let (dir, idle) = (tempfile::tempdir().unwrap(), Arc::<Idle>::default());
    let library =
        |name: &str| format!("#!lua name={name}\nredis.register_function('{name}',function()return 7 end)");
    let libraries: Vec<Vec<u8>> = ["one", "two"].iter().map(|name| library(name).into_bytes()).collect();
    let run = |lines: &[&str], scope: Scope, base: &State| {
        let ordered = Log::default().runs(lines).ordered(dir.path(), (0, 99));
        let mut naming = Naming::new(scope, &ScratchServer::default(), 400, dir.path()).with_idle(&idle);
        let mut commands = ordered.commands(dir.path());
        while let Some(command) = commands.next().unwrap() {
            naming.take(&command).unwrap();
        }
        let mut fold = naming.finish().unwrap();
        fold.base_functions(libraries.clone());
        for (key, (slot, meta, value)) in base {
            fold.base(&Entry { slot: *slot, key, put: Some((meta, value)) }, None).unwrap();
        }
        let folded = fold.run().unwrap();
        let functions = folded.functions.as_ref().map(Vec::len);
        (names(&of_overlay(&folded, &Scope::slots(SlotSet::all()))), functions)
    };
    let all = || Scope::slots(SlotSet::all());
    let (none, base) = (State::new(), made(&["0 SET b base"], dir.path()));
    let program = crate::redis::scratch::find("").unwrap();
    let version = rdb::version_of_server(&crate::redis::scratch::version_of(&program).unwrap()).unwrap();
    let waiting = |count: usize| if version >= 10 { count } else { 0 };
    assert_eq!(run(&["0 SET a 1", "1 SET a 2"], all(), &none).0, ["0 a", "1 a"]);
    assert_eq!(idle.len(), waiting(1));
    // Nothing of the log before is left, whatever its databases, nor of its functions.
    assert_eq!(run(&["0 APPEND b x"], all(), &base).0, ["0 b"]);
    let functions = |line: &str| run(&[line], Scope::functions(), &none).1;
    assert_eq!(functions("0 FUNCTION DELETE one"), Some(1));
    assert_eq!(functions("0 FUNCTION DELETE one"), Some(1));
    assert_eq!(functions("0 FUNCTION FLUSH"), Some(0));
    assert_eq!(run(&["0 SET d 1"], all(), &none).0, ["0 d"]);
    assert_eq!(idle.len(), waiting(1), "one after the other: one server");
    // One with few databases does not do for more.
    assert_eq!(run(&["20 SET c 1"], all(), &none).0, ["20 c"]);
    assert_eq!(run(&["0 SET e 1"], all(), &none).0, ["0 e"]);
    assert_eq!(idle.len(), waiting(2));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), waiting(2));
    drop(idle);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "they are gone with their folders");
}

#[test]
fn a_server_that_was_started_ahead_is_the_one_that_works_the_log_off() {
    let (dir, idle) = (tempfile::tempdir().unwrap(), Arc::<Idle>::default());
    let run = |line: &str| {
        let ordered = Log::default().runs(&[line]).ordered(dir.path(), (0, 99));
        let all = Scope::slots(SlotSet::all());
        let naming = Naming::new(all.clone(), &ScratchServer::default(), 400, dir.path()).with_idle(&idle);
        let (mut naming, mut commands) = (naming.starting_ahead(), ordered.commands(dir.path()));
        while let Some(command) = commands.next().unwrap() {
            naming.take(&command).unwrap();
        }
        let folded = naming.finish().unwrap().run().unwrap();
        names(&of_overlay(&folded, &all))
    };
    assert_eq!(run("0 SET a 1"), ["0 a"]);
    let servers = || std::fs::read_dir(dir.path()).unwrap().count();
    assert!(servers() <= 1, "no second one was started");
    // It does not do for a database that it has not.
    assert_eq!(run("20 SET b 1"), ["20 b"]);
    drop(idle);
    assert_eq!(servers(), 0);
}

#[test]
fn a_log_that_is_not_in_order_is_not_taken_for_sorted() {
    let dir = tempfile::tempdir().unwrap();
    let read = |entries: &[(u16, u64)]| {
        let mut log = Log::default();
        for (slot, at) in entries {
            log.at = *at;
            log.entry(*slot, 0, (EntryKind::Command, &request("SET a 1")));
        }
        let span = Span { after: Timestamp(0), at: Timestamp(9), slots: SlotSet::all() };
        let all = Scope::slots(SlotSet::all());
        let naming = Naming::new(all, &ScratchServer::default(), 1000, dir.path());
        let mut sorter = CommandLog::handing_on(span, 1000, dir.path(), naming);
        sorter.group_in_order(SlotSet::all())?;
        log.groups[0].1.iter().try_for_each(|raw| sorter.push_chunk(raw))?;
        Ok(sorter.finish()?.finish()?.named.count)
    };
    assert_eq!(read(&[(5, 3), (5, 3), (6, 1), (5, 4)]).unwrap(), 4);
    for bad in [&[(5, 3), (6, 1), (5, 2)][..], &[(ALL_SLOTS, 1)]] {
        let e: Error = read(bad).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    }
}
