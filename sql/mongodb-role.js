// What factsync may do with a MongoDB database: read it and follow its changes, and nothing else. Run as an administrator in mongosh.
// Before it come DATABASE, USER, and USER_DATABASE: where USER is defined, "admin" for most, "$external" for X.509 certificates.
// `factsync setup CONFIG` prints all of it filled in. It may be run again: it changes what is there to what is below.
const privileges = [
  // A change stream on a database asks for both on all of its collections.
  { resource: { db: DATABASE, collection: "" }, actions: ["find", "changeStream"] },
  // Which collections there are, which of them are views, and how they can be read.
  { resource: { db: DATABASE, collection: "" }, actions: ["listCollections", "listIndexes"] },
];
const database = db.getSiblingDB(DATABASE);
if (database.getRole("factsync")) {
  database.updateRole("factsync", { privileges, roles: [] });
} else {
  database.createRole({ role: "factsync", privileges, roles: [] });
}
const users = db.getSiblingDB(USER_DATABASE);
const roles = [{ role: "factsync", db: DATABASE }];
if (users.getUser(USER)) {
  users.grantRolesToUser(USER, roles);
} else if (USER_DATABASE === "$external") {
  users.createUser({ user: USER, roles });
} else {
  users.createUser({ user: USER, pwd: passwordPrompt(), roles });
}
