PRAGMA application_id = 1129345904;
BEGIN TRANSACTION;
CREATE TABLE batch (id TEXT NOT NULL, last INTEGER NOT NULL);
INSERT INTO "batch" VALUES('ad5ddf0a25404ae1a605ee72a89f0126',5);
CREATE TABLE cut (position INTEGER NOT NULL);
INSERT INTO "cut" VALUES(3);
CREATE TABLE failed
(position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, why TEXT NOT NULL, command TEXT NOT NULL, error TEXT NOT NULL);
INSERT INTO "failed" VALUES(2,1700000000000000,'refused','claim,slot=gone,machine=worker-1','slot ''gone'' was never allocated');
INSERT INTO "failed" VALUES(3,1700000000000001,'set aside','counters,slot=job-1,n=7','the reply was lost');
CREATE TABLE log (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, record TEXT NOT NULL);
INSERT INTO "log" VALUES(4,1796031983032786,'alloc,slot=job-2,credits=9');
INSERT INTO "log" VALUES(5,1796031983032786,'meta,slot=job-2,site=Zürich');
INSERT INTO "log" VALUES(6,1796031983032786,'claim,slot=job-2,machine=worker-2');
CREATE TABLE tally (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "tally" VALUES('delivered',1);
INSERT INTO "tally" VALUES('refused',1);
COMMIT;
