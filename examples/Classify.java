import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Classify one text over plain HTTP, with nothing but the JDK: java examples/Classify.java "a text" [server]. */
public class Classify {
    public static void main(String[] arguments) throws Exception {
        String text = arguments[0];
        String server = arguments.length > 1 ? arguments[1] : "http://127.0.0.1:8000";
        String body = """
            {"inputs":  [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["%s"]}],
             "outputs": [{"name": "PROBABILITIES", "parameters": {"classification": 1}}]}
            """.formatted(escape(text));
        HttpRequest request = HttpRequest.newBuilder(URI.create(server + "/v2/models/text_classifier/infer"))
            .POST(HttpRequest.BodyPublishers.ofString(body)).build();
        HttpResponse<String> response =
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        // 200: the answer. 503: too many requests wait, try again later. 400: the text cannot be read, do not.
        System.out.println(response.statusCode() + " " + response.body());
        System.exit(response.statusCode() == 200 ? 0 : 1);
    }

    /** A string between the quotes of JSON. */
    static String escape(String text) {
        StringBuilder json = new StringBuilder();
        for (char c : text.toCharArray()) {
            json.append(c == '"' || c == '\\' ? "\\" + c : c < ' ' ? String.format("\\u%04x", (int) c) : c);
        }
        return json.toString();
    }
}
