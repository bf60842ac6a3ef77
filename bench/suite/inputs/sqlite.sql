-- Loads @ROWS@ rows whose text compresses like text, indexes them, looks some up and aggregates all.
-- All values follow from the row number, so the output is the same wherever it runs.
.print phase load
.timer on
CREATE TABLE item(id INTEGER PRIMARY KEY, key INTEGER, name TEXT, note TEXT, price REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < @ROWS@)
INSERT INTO item
SELECT i, (i * 2654435761) % 4294967291,
       printf('%s %s %08x', substr('red green blue white black amber', 1 + (i * 7919) % 26, 6),
              substr('table chair lamp shelf drawer stool', 1 + (i * 104729) % 29, 7), (i * 2654435761) % 4294967296),
       printf('made in %d by %s, batch %012d, stored in hall %d row %d, checked',
              1950 + (i * 31) % 75, substr('northern southern eastern western', 1 + (i * 1299709) % 25, 9),
              (i * 48271) % 2147483647, (i * 13) % 40, (i * 17) % 900),
       ((i * 69621) % 100000) / 100.0
FROM n;
.print phase index
CREATE INDEX item_key ON item(key);
CREATE INDEX item_name ON item(name);
.print phase lookup
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < @LOOKUPS@)
SELECT count(*), sum(length(item.note)), sum(item.price)
FROM n CROSS JOIN item ON item.key = (((i * 40503) % @ROWS@ + 1) * 2654435761) % 4294967291;
.print phase aggregate
SELECT substr(name, 1, 3), count(*), sum(price), max(note) FROM item GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20;
SELECT count(*) FROM item WHERE note LIKE '%hall 7 row 55%';
