//! The fault proxy itself: a client sees every fault as intended, and requests without a fault pass unchanged.

use std::time::{Duration, Instant};

use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::proxy::{Fault, Kind, Proxy, Rule};
use crate::seaweed::{Bucket, block_on, client_of, client_with_retries};

/// A body in which truncation or damage is detectable.
fn bytes() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A bucket with one object, a proxy, and a client of the proxy that does not retry.
fn setup(test: &str, bucket: &str) -> Option<(Bucket, Proxy, AmazonS3, Path)> {
    let bucket = Bucket::new(test, bucket)?;
    bucket.put("folder/object", bytes());
    let proxy = bucket.proxy(7);
    let client = client_of(&proxy.endpoint(), &bucket.name);
    Some((bucket, proxy, client, Path::from("folder/object")))
}

#[test]
fn without_rules_requests_pass_and_are_counted_by_kind() {
    let Some((_bucket, proxy, client, path)) =
        setup("without_rules_requests_pass_and_are_counted_by_kind", "faults-none")
    else {
        return;
    };
    block_on(async {
        assert_eq!(client.get(&path).await.unwrap().bytes().await.unwrap(), bytes());
        assert_eq!(client.head(&path).await.unwrap().size, 1_200_000);
        let listed = client.list_with_delimiter(None).await.unwrap();
        assert_eq!(listed.common_prefixes, [Path::from("folder")]);
        let other = Path::from("é & other=%2F?");
        client.put(&other, "1".into()).await.unwrap();
        client.copy(&other, &Path::from("copy")).await.unwrap();
        let create = PutOptions::from(PutMode::Create);
        let again = client.put_opts(&other, "2".into(), create).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        let mut upload = client.put_multipart(&Path::from("parts")).await.unwrap();
        upload.put_part(vec![1; 5 << 20].into()).await.unwrap();
        upload.put_part(vec![2; 10].into()).await.unwrap();
        upload.complete().await.unwrap();
        let mut upload = client.put_multipart(&Path::from("never")).await.unwrap();
        upload.put_part(vec![1; 10].into()).await.unwrap();
        upload.abort().await.unwrap();
        client.delete(&other).await.unwrap();
        assert_eq!(client.head(&Path::from("parts")).await.unwrap().size, (5 << 20) + 10);
    });
    let kinds = [
        (Kind::Get, 1),
        (Kind::Head, 2),
        (Kind::List, 1),
        (Kind::Put, 1),
        (Kind::PutIf, 1),
        (Kind::Copy, 1),
        (Kind::Delete, 1),
        (Kind::UploadStart, 2),
        (Kind::UploadPart, 3),
        (Kind::UploadComplete, 1),
        (Kind::UploadAbort, 1),
        (Kind::Other, 0),
    ];
    for (kind, requests) in kinds {
        assert_eq!(proxy.requests(kind), requests, "{kind:?}: {:?}", proxy.log());
    }
}

#[test]
fn error_statuses_look_like_those_of_s3() {
    let Some((_bucket, proxy, client, path)) = setup("error_statuses_look_like_those_of_s3", "faults-status") else {
        return;
    };
    for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests"), (501, "NotImplemented")]
    {
        proxy.heal();
        proxy.fail(Rule::new(Fault::Status(status)).on(&[Kind::Get]));
        let error = block_on(client.get(&path)).unwrap_err().to_string();
        assert!(error.contains(&status.to_string()) && error.contains(code), "{error}");
        assert_eq!(proxy.faults(Fault::Status(status)), 1);
    }
    proxy.heal();
    proxy.fail(Rule::new(Fault::Status(403)));
    assert!(matches!(block_on(client.get(&path)), Err(Error::PermissionDenied { .. })));
}

#[test]
fn a_200_response_with_an_error_body_is_a_failure() {
    let Some((bucket, proxy, client, _)) = setup("a_200_response_with_an_error_body_is_a_failure", "faults-body")
    else {
        return;
    };
    proxy.fail(Rule::new(Fault::ErrorBody).on(&[Kind::UploadComplete]));
    let path = Path::from("parts");
    let completed = block_on(async {
        let mut upload = client.put_multipart(&path).await.unwrap();
        upload.put_part(vec![1; 10].into()).await.unwrap();
        upload.complete().await
    });
    let error = completed.unwrap_err().to_string();
    assert!(error.contains("InternalError"), "{error}");
    assert!(matches!(block_on(bucket.client.head(&path)), Err(Error::NotFound { .. })));
}

#[test]
fn a_reset_precedes_the_write_and_a_dropped_response_follows_it() {
    let test = "a_reset_precedes_the_write_and_a_dropped_response_follows_it";
    let Some((bucket, proxy, client, _)) = setup(test, "faults-reset") else { return };
    let exists = |path: &Path| block_on(bucket.client.head(path)).is_ok();
    let path = Path::from("reset");
    proxy.fail(Rule::new(Fault::Reset).on(&[Kind::Put]));
    let put = block_on(client.put(&path, "1".into()));
    assert!(put.is_err() && !exists(&path), "{put:?}");
    proxy.heal();
    proxy.fail(Rule::new(Fault::DropAnswer).on(&[Kind::Put]));
    let put = block_on(client.put(&path, "1".into()));
    assert!(put.is_err() && exists(&path), "{put:?}");
}

/// The difficult case for commits: the writer is told that another writer was first.
#[test]
fn a_create_with_a_lost_response_may_have_succeeded() {
    let test = "a_create_with_a_lost_response_may_have_succeeded";
    let Some((bucket, proxy, _, _)) = setup(test, "faults-create") else { return };
    let client = client_with_retries(&proxy.endpoint(), &bucket.name, 3);
    let path = Path::from("commit");
    proxy.fail(Rule::new(Fault::DoneButStatus(500)).on(&[Kind::PutIf]).times(1));
    let create = || block_on(client.put_opts(&path, "mine".into(), PutOptions::from(PutMode::Create)));
    let created = create();
    assert!(matches!(created, Err(Error::AlreadyExists { .. })), "{created:?}");
    let found = block_on(async { bucket.client.get(&path).await.unwrap().bytes().await.unwrap() });
    assert_eq!(found, "mine".as_bytes());
    // After a broken connection the client does not retry, because the outcome is unknown.
    block_on(bucket.client.delete(&path)).unwrap();
    proxy.fail(Rule::new(Fault::DropAnswer).on(&[Kind::PutIf]).times(1));
    let created = create();
    assert!(matches!(created, Err(Error::Generic { .. })), "{created:?}");
    assert!(block_on(bucket.client.head(&path)).is_ok());
}

#[test]
fn a_stalled_response_ends_late_and_a_slow_one_is_complete() {
    let Some((_bucket, proxy, client, path)) =
        setup("a_stalled_response_ends_late_and_a_slow_one_is_complete", "faults-slow")
    else {
        return;
    };
    let began = Instant::now();
    proxy.fail(Rule::new(Fault::Stall(Duration::from_millis(300))));
    assert!(block_on(client.get(&path)).is_err());
    assert!(began.elapsed() >= Duration::from_millis(300));
    proxy.heal();
    let began = Instant::now();
    proxy.fail(Rule::new(Fault::SlowBody(Duration::from_millis(3))));
    let found = block_on(async { client.get(&path).await.unwrap().bytes().await.unwrap() });
    assert!(found == bytes() && began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_truncated_body_is_noticed_and_resumed() {
    let test = "a_truncated_body_is_noticed_and_resumed";
    let Some((bucket, proxy, client, path)) = setup(test, "faults-truncated") else { return };
    proxy.fail(Rule::new(Fault::TruncatedBody).on(&[Kind::Get]).times(2));
    let cut = block_on(async { client.get(&path).await.unwrap().bytes().await });
    assert!(cut.is_err());
    let client = client_with_retries(&proxy.endpoint(), &bucket.name, 3);
    let found = block_on(async { client.get(&path).await.unwrap().bytes().await.unwrap() });
    assert_eq!(found, bytes());
    assert_eq!((proxy.faults(Fault::TruncatedBody), proxy.requests(Kind::Get)), (2, 3));
}

#[test]
fn rules_select_by_kind_path_count_and_probability() {
    let Some((_bucket, proxy, client, path)) = setup("rules_select_by_kind_path_count_and_probability", "faults-rules")
    else {
        return;
    };
    let fault = Fault::Status(500);
    proxy.fail(Rule::new(fault).on(&[Kind::Get]).path("/folder/").after(1).times(2));
    let get = |path: &Path| block_on(client.get_opts(path, GetOptions::default())).is_ok();
    assert!(block_on(client.head(&path)).is_ok());
    assert_eq!([get(&path), get(&path), get(&path), get(&path)], [true, false, false, true]);
    assert_eq!((proxy.faults(fault), proxy.requests(Kind::Get)), (2, 4));
    proxy.heal();
    proxy.fail(Rule::new(fault).rate(0.5));
    let failed = (0..100).filter(|_| !get(&path)).count();
    assert!((30..=70).contains(&failed), "{failed}");
}

#[test]
fn a_server_without_conditional_writes_overwrites() {
    let Some((_bucket, proxy, client, path)) = setup("a_server_without_conditional_writes_overwrites", "faults-if")
    else {
        return;
    };
    let create = || block_on(client.put_opts(&path, "2".into(), PutOptions::from(PutMode::Create)));
    assert!(matches!(create(), Err(Error::AlreadyExists { .. })));
    proxy.fail(Rule::new(Fault::IgnoreCondition).on(&[Kind::PutIf]));
    create().unwrap();
    assert_eq!(block_on(client.head(&path)).unwrap().size, 1);
}
